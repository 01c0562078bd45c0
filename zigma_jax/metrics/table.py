"""Every number that compares two sets of pictures, by name."""

import warnings
from collections.abc import Sequence

from zigma_jax.errors import ConfigError
from zigma_jax.metrics.features import Features, check_same_network
from zigma_jax.metrics.frechet import frechet_distance
from zigma_jax.metrics.inception_score import inception_score
from zigma_jax.metrics.kernel_distance import kernel_distance, unbiased_kernel_distance
from zigma_jax.metrics.prdc import prdc

PRDC = ("precision", "recall", "density", "coverage")
METRICS = ("fd", "sfd", "kd", "kd-full", *PRDC, "is")
LOWER_IS_BETTER = ("fd", "sfd", "kd", "kd-full")
_INCEPTION = {"fd": "FID", "sfd": "sFID", "kd": "KID", "kd-full": "KID-full", "is": "IS"}
_OTHERS = {"fd": "FD", "sfd": "sFD", "kd": "KD", "kd-full": "KD-full", "is": "IS"}
SUBSET = 1000  # samples of a subset of "kd"


class FewSamplesWarning(UserWarning):
    """A distance is computed, but from too few samples to mean what it usually does."""


def compute(features: Features, reference: Features, names: Sequence[str] | None = None) -> dict[str, float]:
    """The named metrics of the pictures that `features` are of, against those of `reference`.

    names: of `METRICS`; None: all that can be computed from what the two hold. "fd" Fréchet distance, "sfd" that of
        "spatial", "kd" kernel distance over subsets of 1,000, "kd-full" over all samples, "precision", "recall",
        "density", "coverage", "is" inception score (of `features` alone).

    Returns values by the name to print, in the order asked for. Of the network "inception" these are FID, sFID, KID,
    KID_std, KID-full, precision, …, IS, IS_std; of a variant inception-X, FID-X and so on; of another network, NAME,
    they are FD-NAME, sFD-NAME, KD-NAME, KD-NAME_std, precision-NAME, …: no number passes for an FID that isn't one.

    Warns:
        FewSamplesWarning: a Fréchet distance with no more samples than feature dimensions.
        UserWarning: pictures of one size against those of another.

    Raises:
        ValueError: an unknown name, features of different networks, or features that a named metric needs and that
            are not there.
    """
    names = check_metrics(features, reference, names)
    neighbours = None
    table = {}
    for name in names:
        if name in ("fd", "sfd"):
            layer = "pool" if name == "fd" else "spatial"
            distance = frechet_distance(features.gaussians[layer], reference.gaussians[layer])
            table[metric_label(name, features.network)] = distance
        elif name == "kd":
            mean_and_std = kernel_distance(features.rows["pool"], reference.rows["pool"], subset_size=SUBSET)
            _put(table, metric_label(name, features.network), mean_and_std)
        elif name == "kd-full":
            distance = unbiased_kernel_distance(features.rows["pool"], reference.rows["pool"])
            table[metric_label(name, features.network)] = distance
        elif name == "is":
            _put(table, metric_label(name, features.network), inception_score(features.rows["logits"]))
        else:
            neighbours = neighbours or prdc(features.rows["pool"], reference.rows["pool"])
            table[metric_label(name, features.network)] = neighbours[name]
    return table


def check_metrics(features: Features, reference: Features, names: Sequence[str] | None = None) -> list[str]:
    """The metrics that `compute` would compute. Warns and raises as `compute` does, and computes nothing.

    Looks at names, counts and shapes alone, so that it can be asked before long work, with numbers that are made up.
    """
    if unknown := [name for name in names or () if name not in METRICS]:
        raise ConfigError(f"metrics {', '.join(map(repr, unknown))}: unknown; known are {', '.join(METRICS)}")
    check_same_network(features, reference.network, reference.fingerprint, "the set", "the reference")
    if names is None:
        names = [name for name in METRICS if _missing(name, features, reference) is None]
    for name in names:
        if problem := _missing(name, features, reference):
            raise ConfigError(f"metric {name!r}: {problem}")
    if features.image_size and reference.image_size and features.image_size != reference.image_size:
        warnings.warn(
            f"pictures of {features.image_size} pixels are compared with a reference of {reference.image_size}: "
            "the distance measures the change of size too; scale one of them",
            stacklevel=3,
        )
    for name, layer in (("fd", "pool"), ("sfd", "spatial")):
        if name in names:
            _warn_of_few(metric_label(name, features.network), features, reference, layer)
    return list(names)


def _put(table: dict[str, float], label: str, mean_and_std: tuple[float, float]) -> None:
    table[label], table[f"{label}_std"] = mean_and_std


def metric_label(name: str, network: str) -> str:
    """What a metric of `METRICS` is called in print, of this network: see `compute`."""
    if network == "i3d-fvd":  # I3D with the published weights, and nothing else
        return {"fd": "FVD", "kd": "KVD", "kd-full": "KVD-full"}.get(name, f"{_OTHERS.get(name, name)}-i3d")
    if network == "inception" or network.startswith("inception-"):
        return _INCEPTION.get(name, name) + network.removeprefix("inception")
    return f"{_OTHERS.get(name, name)}-{network}"


def _missing(name: str, features: Features, reference: Features) -> str | None:
    """What `name` needs and the two sets lack, and what to do; None: nothing."""
    if name in ("fd", "sfd"):
        layer = "pool" if name == "fd" else "spatial"
        for what, one in ("the set", features), ("the reference", reference):
            if layer not in one.gaussians:
                return f"{what} has no {layer!r} statistics; extract it with a network that has that output"
        return None
    if name == "is":
        n = len(features.rows.get("logits", ()))
        return None if n >= 10 else f"needs the logits of at least 10 samples, there are {n}"
    least = {"kd": SUBSET, "kd-full": 2}.get(name, 6)
    for what, one in ("the set", features), ("the reference", reference):
        n = len(one.rows.get("pool", ()))
        if n < least:
            advice = ', or ask for "kd-full"' if name == "kd" and n > 1 else ""
            return f"needs the features of at least {least} samples, {what} holds {n}; keep more of them{advice}"
    return None


def _warn_of_few(label: str, features: Features, reference: Features, layer: str) -> None:
    for what, one in ("the set", features), ("the reference", reference):
        count, dimensions = one.count, len(one.gaussians[layer].mean)
        if count is not None and count <= dimensions:
            warnings.warn(
                f"{label}: {what} has {count} samples for {dimensions} feature dimensions, the covariance is singular "
                f"and the distance far too large; take more than {dimensions} (50,000 is usual), compare only with "
                "distances from as many samples, or use kd-full, which has no bias",
                FewSamplesWarning,
                stacklevel=4,
            )

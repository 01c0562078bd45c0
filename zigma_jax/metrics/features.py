"""What a network makes of a set of pictures: the features that sets are compared by."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from zigma_jax import processes
from zigma_jax.errors import DataError
from zigma_jax.metrics.accumulate import Moments, Sample
from zigma_jax.metrics.frechet import Gaussian

GAUSSIAN = ("pool", "spatial")  # outputs of a network whose mean and covariance are wanted
KEPT = ("pool", "logits")  # outputs whose every row is wanted


class Share(NamedTuple):
    """Of a batch of `total` pictures those of this process: numbers p, p + P, …, of process p of P."""

    total: int
    images: UInt8[np.ndarray, "_b *size 3"] | UInt8[Array, "_b *size 3"]

    @classmethod
    def of(cls, images: Any) -> "Share":
        """Of a batch that every process has."""
        return cls(len(images), images[processes.index() :: processes.count()])


@runtime_checkable
class FeatureExtractor(Protocol):
    """A network that features come from, such as `networks.load_network` gives.

    If it is a pytree, its arrays are its weights, and are copied to every device once. `jax.jit` can compile a call.
    Outputs, float32: "pool" (b, d); where there are any, "logits" (b, classes) before the softmax and "spatial" (b, e),
    of a layer that still has positions.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, in hexadecimal digits."""
        ...

    def __call__(self, images: UInt8[Array, "b *size 3"]) -> dict[str, Float[Array, "b _"]]: ...


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of a set of pictures, and where they are from.

    network, fingerprint: the extractor's. An empty fingerprint is unknown: a file of another program.
    count: pictures seen; None if unknown. image_size: (height, width) of them, or (frames, height, width); None if
        unknown.
    source: what the pictures are, in words: {"dataset": "avatars", "version": "1.0.0", "split": "train"}.
    gaussians: of "pool" and, where the network has it, "spatial".
    rows: float32 "pool" (n, d) and "logits" (n, classes) of all pictures, or of a random part of them.
    """

    network: str
    fingerprint: str
    count: int | None
    image_size: tuple[int, ...] | None
    source: Mapping[str, str]
    gaussians: Mapping[str, Gaussian]
    rows: Mapping[str, Float[np.ndarray, "n _"]]


def extract(
    extractor: FeatureExtractor,
    batches: Iterable[UInt8[np.ndarray, "_b ..."] | UInt8[Array, "_b ..."] | Share],
    *,
    source: Mapping[str, str] | None = None,
    keep: int = 50_000,
    mesh: Mesh | None = None,
) -> Features:
    """The features of the pictures in `batches`, computed on all devices of `mesh` (by default, all there are).

    Batches may be of any size, and are the same on every process, or each process's `Share` of such a batch. Every
    process computes those of its share, and all get the features of all. What comes out depends on neither sizes nor
    shares but for the rounding of the network itself.

    keep: how many rows of "pool" and "logits" to keep, for distances that need every sample. Of more pictures,
        a random part is kept; means and covariances are always of all.

    Raises:
        ValueError: pictures that are not uint8 (b, h, w, 3), nor videos (b, f, h, w, 3); sizes that change, features
            that are not finite, fewer than two pictures.
    """
    mesh = Mesh(np.asarray(jax.local_devices() if mesh is None else mesh.local_devices).reshape(-1), ("data",))
    divided = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    if jax.tree_util.all_leaves([extractor]):  # no pytree: its weights are constants
        run = jax.jit(lambda images: extractor(images), out_shardings=divided)
    else:
        weights = jax.device_put(extractor, NamedSharding(mesh, PartitionSpec()))
        run = functools.partial(_run, weights, sharding=divided)
    moments: dict[str, Moments] = {}
    sample = Sample(keep)
    largest, count, size = 0, 0, None

    def collect(outputs: dict[str, Array], n: int) -> None:
        wanted = [name for name in dict.fromkeys((*GAUSSIAN, *KEPT)) if name in outputs]  # in one order everywhere
        rows = {name: of_all(outputs[name])[:n] for name in wanted}
        for name in GAUSSIAN:
            if name not in rows:
                continue
            moments.setdefault(name, Moments()).add(rows[name])
        sample.add({name: rows[name] for name in KEPT if name in rows})

    in_flight = None
    for batch in batches:
        total, images = batch if isinstance(batch, Share) else Share.of(batch)
        size = _check_images(images, size)
        if not total:
            continue
        # The last batch is filled up to the size of the others: one compilation, and as many for every device.
        mine = -(-total // processes.count())
        largest = max(largest, -(-mine // mesh.size) * mesh.size)
        filled = np.resize(images, (largest, *images.shape[1:]))
        outputs = run(jax.device_put(filled, divided))
        if in_flight is not None:  # added up while the devices are at the next batch
            collect(*in_flight)
        in_flight = outputs, total
        count += total
    if in_flight is not None:
        collect(*in_flight)
    if count < 2:
        raise DataError(f"{count} pictures: features of a set need at least 2")
    gaussians = {name: moments[name].gaussian() for name in GAUSSIAN if name in moments}
    return Features(extractor.name, extractor.fingerprint, count, size, source or {}, gaussians, sample.rows())


@functools.partial(jax.jit, static_argnames="sharding")  # once and for all: training evaluates again and again
def _run(network: FeatureExtractor, images: UInt8[Array, "b *size 3"], sharding: NamedSharding) -> dict[str, Array]:
    return lax.with_sharding_constraint(network(images), sharding)


def check_same_network(features: Features, network: str, fingerprint: str, what: str, other: str) -> None:
    """Raises ValueError unless `features`, called `what`, are of this network, that of `other`."""
    if features.network != network:
        raise DataError(
            f"{what} is of the network {features.network!r}, {other} of {network!r}: "
            "distances compare features of one network; extract both with the same"
        )
    if features.fingerprint and fingerprint and features.fingerprint != fingerprint:
        raise DataError(
            f"{what} and {other} are both of {network!r}, with other weights (sha256 {features.fingerprint[:12]}… and "
            f"{fingerprint[:12]}…): extract both with the same weights"
        )


def _check_images(images: np.ndarray | Array, size: tuple[int, ...] | None) -> tuple[int, ...]:
    if images.dtype != np.uint8 or images.ndim not in (4, 5) or images.shape[-1] != 3:
        raise DataError(f"pictures {images.shape} {images.dtype}: must be (b, [f,] h, w, 3) uint8, 0 … 255")
    if size not in (None, images.shape[1:-1]):
        raise DataError(f"pictures of {images.shape[1:-1]} pixels after some of {size}: one set has one size")
    return images.shape[1:-1]


def of_all(rows: Float[Array, "b _"] | Float[np.ndarray, "b _"]) -> Float[np.ndarray, "n _"]:
    """The rows of all processes on this host, float32, in the order of the pictures that were shared out.

    Every process gives as many rows: those beyond the pictures that there are come last.
    """
    shares = processes.allgather(np.asarray(rows, np.float32))
    return np.swapaxes(shares, 0, 1).reshape(-1, shares.shape[-1])

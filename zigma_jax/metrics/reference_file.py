"""Features of a reference set in a file, with what they were made of; nothing in a file is ever unpickled.

A file is an npz in the layout that FID programs share: "mu" (d,) and "sigma" (d, d) of "pool", "feats" (n, d)
if rows were kept, "mu_s" and "sigma_s" of "spatial"; and "logits" (n, classes). Ours adds "json", text that
names the network, its weights, and the pictures.
"""

import dataclasses
import importlib.metadata
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zigma_jax import processes
from zigma_jax.errors import DataError
from zigma_jax.files import open_atomically
from zigma_jax.metrics.features import FeatureExtractor, Features, check_same_network, extract
from zigma_jax.metrics.frechet import Gaussian

_FORMAT = 1
_GAUSSIANS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
_ROWS = {"pool": "feats", "logits": "logits"}


def save_features(path: str | Path, features: Features) -> None:
    """Writes the file as a whole or not at all, over one that may be there.

    Raises:
        ValueError: the name doesn't end in .npz.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise DataError(f"{path}: the name must end in .npz")
    about = {
        "format": _FORMAT,
        "network": features.network,
        "weights_sha256": features.fingerprint,
        "count": features.count,
        "image_size": features.image_size,
        "source": dict(features.source),
        "zigma_jax": _version(),
    }
    arrays = {"json": np.array(json.dumps(about))}
    for name, gaussian in features.gaussians.items():
        mean, covariance = _GAUSSIANS[name]
        arrays |= {mean: gaussian.mean, covariance: gaussian.covariance}
    arrays |= {_ROWS[name]: rows for name, rows in features.rows.items() if len(rows)}
    with open_atomically(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_features(path: str | Path, extractor: FeatureExtractor) -> Features:
    """The features in a file, to be compared with those of `extractor`.

    A file of another program names no network: it is taken for `extractor`'s, if the dimensions agree with what
    it is compared with later, and its fingerprint is empty.

    Raises:
        ValueError: the file is of another network or other weights, damaged, or not such a file at all.
        FileNotFoundError: there is none.
    """
    arrays = _read(Path(path))
    try:
        about = json.loads(str(arrays["json"])) if "json" in arrays else None
        if about is not None and about["format"] != _FORMAT:
            raise DataError(f"format {about['format']}, not {_FORMAT}: of another version of zigma_jax, extract anew")
        count = None if about is None else about["count"]
        gaussians = {
            name: _gaussian(arrays, keys, count) for name, keys in _GAUSSIANS.items() if arrays.keys() & set(keys)
        }
        rows = {name: np.asarray(arrays[key], np.float32) for name, key in _ROWS.items() if key in arrays}
        if "pool" not in gaussians:
            raise DataError(f"no mu and sigma in it, but {', '.join(sorted(arrays)) or 'nothing'}")
        if "pool" in rows and rows["pool"].shape[1:] != gaussians["pool"].mean.shape:
            raise DataError(f"feats {rows['pool'].shape} for mu {gaussians['pool'].mean.shape}")
        if about is None:
            return Features(extractor.name, "", None, None, {"file": Path(path).name}, gaussians, rows)
        size = None if about["image_size"] is None else tuple(about["image_size"])
        network, fingerprint, source = about["network"], about["weights_sha256"], about["source"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a file of features: {error}") from error
    features = Features(network, fingerprint, count, size, source, gaussians, rows)
    check_same_network(features, extractor.name, extractor.fingerprint, str(path), "what it is used for")
    return features


def cached_features(
    path: str | Path,
    extractor: FeatureExtractor,
    batches: Callable[[], Iterable],
    source: Mapping[str, str],
    **options,
) -> Features:
    """The features in `path` if there is such a file, else those `extract`ed from `batches()`, saved there.

    source: what the pictures are (see `Features`). options: of `extract`.

    Raises:
        ValueError: as `load_features`, or the file is of another source.
    """
    features = known_features(path, extractor)
    if features is not None:
        if dict(features.source) != dict(source):
            raise DataError(
                f"{path} is of {dict(features.source)}, not of {dict(source)}: give another path, or remove the file"
            )
        return features
    features = extract(extractor, batches(), source=source, **options)
    processes.from_primary(lambda: save_features(path, features))
    return features


def known_features(path: str | Path, extractor: FeatureExtractor) -> Features | None:
    """`load_features` of a file that process 0 sees; None if it sees none.

    The other processes are told what the features are of, and get none of the numbers.

    Raises as `load_features`.
    """
    found: list[Features] = []

    def look() -> dict[str, Any] | None:
        if not Path(path).exists():
            return None
        found.append(features := load_features(path, extractor))
        return {
            **dataclasses.asdict(dataclasses.replace(features, gaussians={}, rows={}, source=dict(features.source)))
        }

    about = processes.from_primary(look)
    if found or about is None:
        return found[0] if found else None
    size = about.pop("image_size")
    return Features(**about, image_size=None if size is None else tuple(size))


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz that this module knows. Every member's checksum is verified by reading it."""
    known = {"json", *_ROWS.values(), *(key for keys in _GAUSSIANS.values() for key in keys)}
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an npz file (pickles are never read)")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if key in known}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged, or holds objects instead of numbers: {error}") from error


def _gaussian(arrays: dict[str, np.ndarray], keys: tuple[str, str], count: int | None) -> Gaussian:
    if missing := [key for key in keys if key not in arrays]:
        raise DataError(f"no {missing[0]} in it")
    mean, covariance = (np.asarray(arrays[key], np.float64) for key in keys)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(f"{keys[0]} {mean.shape} and {keys[1]} {covariance.shape} are no mean and covariance")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{keys[0]} or {keys[1]} is not finite")
    return Gaussian(mean, covariance, count)


def _version() -> str:
    try:
        return importlib.metadata.version("zigma_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

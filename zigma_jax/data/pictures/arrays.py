"""Pictures and labels in an .npz: one reader, and the rules that say what its numbers mean."""

import contextlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from zigma_jax.data.pictures.decode import describe
from zigma_jax.errors import DataError

_ARRAYS = {"samples": "labels", "arr_0": "arr_1"}  # ours, guided-diffusion's; each with the labels beside it
_FARTHEST = 10  # drawn samples leave [-1, 1] a little, or before training a lot; bytes as floats go to 255
_CHUNK = 1 << 24  # bytes read at a time


def is_npz(path: Path) -> bool:
    """Whether `path` is to be read as an .npz, by its name."""
    return path.suffix.lower() == ".npz"


def read_npz(path: Path, limit: int | None = None) -> tuple[np.ndarray, Int[np.ndarray, " n"] | None]:
    """The array `samples` or `arr_0` of a file, at most its first `limit` rows, and their labels if it has them.

    Labels are `labels`, or `arr_1` beside `arr_0`. Nothing is ever unpickled, and no more memory is asked for than
    the file can fill.

    Raises:
        DataError: no such file, no .npz or a damaged one, no such array, an empty one, or labels that are not one
            whole number from 0 on for each sample.
    """
    with _naming(path):
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            key = next((key for key in _ARRAYS if key in members), None)
            if key is None:
                raise DataError(f"there is no array `samples`, but {', '.join(members) or 'none'}")
            samples, count = _read(archive, members[key], limit)
            of_labels = next((name for name in ("labels", _ARRAYS[key]) if name in members), None)
            labels = None
            if of_labels:
                labels, label_count = _read(archive, members[of_labels], limit)
                _check_labels(of_labels, labels, label_count, key, count)
                labels = labels.astype(np.int64)
        if not samples.size or samples.ndim < 2:
            raise DataError(f"`{key}` of shape {samples.shape}: there are no samples")
        return samples, labels


def check_pixels(path: Path, samples: np.ndarray) -> None:
    """That samples are pictures by the one rule: uint8 in 0 … 255, or finite floats in [-1, 1].

    Floats may leave the interval a little, as drawn samples do, but not up to 255; and floats between 0 and 1 of
    which none is negative were scaled to [0, 1].

    Raises:
        DataError: naming file, rule and remedy.
    """
    rule = f"{path}: these are {samples.dtype}; floats must be finite and in [-1, 1], and bytes uint8"
    if samples.dtype == np.uint8:
        return
    if not np.issubdtype(samples.dtype, np.floating):
        raise DataError(f"{rule}: save bytes with .astype(np.uint8)")
    check_finite(path, samples)
    low, high = float(samples.min()), float(samples.max())
    if max(-low, high) > _FARTHEST:
        raise DataError(f"{rule}, not from {low:.4g} to {high:.4g}: save bytes with .astype(np.uint8)")
    if 0 <= low < high <= 1:
        raise DataError(f"{rule}, and none is negative from {low:.4g} to {high:.4g}: of [0, 1], save 2 * x - 1")


def check_finite(path: Path, samples: np.ndarray) -> None:
    """That samples are finite floats, as latents are. Raises DataError."""
    if not np.issubdtype(samples.dtype, np.floating):
        raise DataError(f"{path}: these are {samples.dtype}, and samples that are no pictures are floats")
    with np.errstate(invalid="ignore"):
        ends = np.array([samples.min(), samples.max()])
    if not np.isfinite(ends).all():
        raise DataError(f"{path}: floats must be finite, and there are NaN or infinite ones among these")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int | None) -> tuple[np.ndarray, int]:
    """At most the first `limit` rows of an array, in this machine's byte order, and how many rows it has in all."""
    name = info.filename
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise DataError(f"`{name}` is of an unknown version of .npy: {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype.hasobject:
            raise DataError(f"`{name}` holds Python objects, which are never unpickled; save numbers")
        if dtype.kind not in "biuf":
            raise DataError(f"`{name}` holds {dtype}, where numbers are wanted")
        size, there = math.prod(shape) * dtype.itemsize, info.file_size - stream.tell()
        if size != there:
            raise DataError(f"`{name}` says that it is {shape} {dtype}, {size:,} bytes, and has {there:,}: damaged")
        rows = shape[:1] if limit is None or fortran else (min(limit, *shape[:1]),)
        size = math.prod(rows + shape[1:]) * dtype.itemsize
        if size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
            raise DataError(f"`{name}` takes {size:,} bytes of memory, and this machine has {memory:,}")
        array = np.empty(size, np.uint8)
        for start in range(0, size, _CHUNK):
            part = memoryview(array)[start : start + _CHUNK]
            if _fill(stream, part) != len(part):
                raise EOFError(f"`{name}` ends early")
    values = array.view(dtype).reshape(rows + shape[1:], order="F" if fortran else "C")
    values = values[:limit] if shape else values
    return values.astype(dtype.newbyteorder("="), copy=False), shape[0] if shape else 1


def _fill(stream: Any, part: memoryview) -> int:
    done = 0
    while done < len(part) and (count := stream.readinto(part[done:])):
        done += count
    return done


def _check_labels(name: str, labels: np.ndarray, count: int, key: str, samples: int) -> None:
    rule = f"`{name}` must be whole numbers from 0 on, one for each of `{key}`"
    if labels.ndim != 1 or count != samples:
        raise DataError(f"{rule}: {samples} samples, and labels of shape {(count, *labels.shape[1:])}")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{rule}: they are {labels.dtype}, such as {labels[:1].tolist()}")
    if len(labels) and labels.min() < 0:
        raise DataError(f"{rule}: there is {labels.min()}")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of reading as DataError naming the file, and what it is if it is no .npz."""
    try:
        if not path.is_file():
            raise DataError("there is no such file" if not path.exists() else "no file")
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                what = describe(file.read(1024))
            raise DataError(f"no .npz, but {what}; np.savez(FILE, samples=…) writes one")
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (
        EOFError,
        MemoryError,
        NotImplementedError,
        OSError,
        OverflowError,
        RuntimeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:  # fmt: skip
        raise DataError(f"{path}: a damaged .npz ({type(error).__name__}: {error})") from error

"""Sets of pictures as metrics look at them: how many, how large, from where, and the pictures in batches of bytes."""

import dataclasses
import itertools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from zigma_jax.data.config import DataConfig
from zigma_jax.data.datasets.folder import SUFFIXES
from zigma_jax.data.images import center_crop, decode, to_uint8
from zigma_jax.data.pipeline import one_pass
from zigma_jax.data.sources import SourceInfo

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A set that can be gone through again and again.

    count: how many. size: (height, width) in pixels. about: what they are, in words.
    batches: a function of the batch size that yields uint8 (b, height, width, 3), `count` in all; the last may be
        smaller.
    """

    count: int
    size: Size
    about: Mapping[str, str]
    batches: Callable[[int], Iterator[UInt8[np.ndarray, "_b h w 3"]]]

    def first(self, count: int) -> UInt8[np.ndarray, "_n h w 3"]:
        """At most `count` of them."""
        return next(self.batches(min(count, self.count)))


def of_dataset(config: DataConfig, info: SourceInfo, limit: int | None = None) -> Pictures:
    """The pictures of `config`'s split, of which `info` tells, not mirrored; at most `limit` of them.

    Fewer than all are the first ones: of a set that is sorted, no fair sample.
    """
    config = dataclasses.replace(config, flip=False)
    count = info.length if limit is None else min(limit, info.length)

    def batches(batch_size: int) -> Iterator[np.ndarray]:
        for batch in one_pass(config, batch_size=batch_size, limit=count):
            yield to_uint8(batch["image"])

    about = {"dataset": info.name, "split": info.split, "pixels": f"{config.size[0]} x {config.size[1]}"}
    return Pictures(count, config.size, about | ({"first": str(count)} if count < info.length else {}), batches)


def of_files(path: Path, size: Size | None = None, limit: int | None = None) -> Pictures:
    """The pictures in an .npz, in a directory with a samples.npz, or in a directory of pictures and all below it.

    An npz has `samples` or, as guided-diffusion writes it, `arr_0`: (n, h, w, 3), uint8, or floats in [-1, 1].
    size: crop and resize pictures to it, as for training; None: they must be of one size.
    limit: take the first so many, in the order of their names.

    Raises:
        ValueError: nothing there, pictures of several sizes, arrays of another kind, fewer than `limit`.
    """
    if (path / "samples.npz").is_file():
        path = path / "samples.npz"
    pictures = _of_array(path, size, limit) if path.suffix == ".npz" else _of_directory(path, size, limit)
    if limit is not None and limit > pictures.count:
        raise ValueError(f"{path}: there are {pictures.count} pictures, and {limit} are asked for")
    return pictures


def _of_array(path: Path, size: Size | None, limit: int | None) -> Pictures:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: {'no npz' if path.exists() else 'there is no such file'}")
    with np.load(path) as file:
        key = next((key for key in ("samples", "arr_0") if key in file), None)
        if key is None:
            raise ValueError(f"{path}: there is no array `samples`, but {', '.join(file) or 'none'}")
        array = file[key][:limit]
    if array.ndim != 4 or array.shape[-1] != 3 or not len(array):
        raise ValueError(f"{path}: `{key}` of shape {array.shape}, where pictures are (n, height, width, 3)")
    if size not in (None, array.shape[1:3]):
        raise ValueError(f"{path}: pictures of {array.shape[1:3]} pixels, where {size} are wanted")
    if array.dtype != np.uint8 and (not np.isfinite(array).all() or np.abs(array).max() > 10):
        raise ValueError(f"{path}: `{key}` is {array.dtype}; floats must be finite and in [-1, 1], and bytes uint8")

    def batches(batch_size: int) -> Iterator[np.ndarray]:
        for first in range(0, len(array), batch_size):
            batch = array[first : first + batch_size]
            yield batch if batch.dtype == np.uint8 else to_uint8(batch.astype(np.float32))

    return Pictures(len(array), (array.shape[1], array.shape[2]), {"file": str(path)}, batches)


def _of_directory(path: Path, size: Size | None, limit: int | None) -> Pictures:
    if not path.is_dir():
        raise ValueError(f"{path}: neither a directory of pictures nor an .npz")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"{path}: there are no pictures in it ({', '.join(SUFFIXES)})")
    files = files[:limit]
    size = size or _common_size(files)

    def batches(batch_size: int) -> Iterator[np.ndarray]:
        for chosen in itertools.batched(files, batch_size):
            yield np.stack([_read(file, size) for file in chosen])

    return Pictures(len(files), size, {"directory": str(path)}, batches)


def _common_size(files: list[Path]) -> Size:
    """The size of all, by their headers alone."""
    example: dict[Size, Path] = {}
    for file in files:
        try:
            with Image.open(file) as image:
                example.setdefault((image.height, image.width), file)
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{file}: no picture that can be read ({error})") from error
        if len(example) > 1:
            (a, of_a), (b, of_b) = example.items()
            raise ValueError(
                f"pictures of different sizes: {of_a} is {a[0]} x {a[1]}, {of_b} is {b[0]} x {b[1]} pixels; move what "
                "does not belong there away, or give one size to crop and resize all to (--image_size=64)"
            )
    return next(iter(example))


def _read(file: Path, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    try:
        return center_crop(decode(file.read_bytes()), size)
    except Exception as error:  # damage shows as any exception of the decoder
        raise ValueError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error

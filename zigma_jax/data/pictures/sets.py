"""Sets of pictures as metrics look at them: how many, how large, from where, and the pictures in batches of bytes.

And as `zigma_jax.sample --encode` takes them: all at once, as floats, with their labels.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from zigma_jax import processes
from zigma_jax.data.config import DataConfig
from zigma_jax.data.pictures.arrays import check_finite, check_pixels, is_npz, read_npz
from zigma_jax.data.pictures.files import SUFFIXES, find_pictures, read_picture, read_size
from zigma_jax.data.pictures.pixels import to_float, to_uint8
from zigma_jax.data.pipeline import one_pass
from zigma_jax.data.sources import SourceInfo
from zigma_jax.errors import DataError

Size = tuple[int, ...]
"""(height, width) of pictures, (frames, height, width) of clips."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A set that can be gone through again and again.

    count: how many. size: (height, width) in pixels, of clips (frames, height, width). about: what they are, in words.
    batches: a function of the batch size that yields uint8 (b, *size, 3), `count` in all; the last may be smaller.
    shares: the same of a set that several processes read together: yields (b, those of the b pictures that are this
        process's), numbers p, p + P, … of process p of P. None: every process has all pictures.
    """

    count: int
    size: Size
    about: Mapping[str, str]
    batches: Callable[[int], Iterator[UInt8[np.ndarray, "_b ..."]]]
    shares: Callable[[int], Iterator[tuple[int, UInt8[np.ndarray, "_b ..."]]]] | None = None

    @property
    def are_clips(self) -> bool:
        return len(self.size) == 3

    def frames(self) -> "Pictures":
        """Of clips every frame, as pictures; pictures as they are."""
        if not self.are_clips:
            return self

        def batches(batch_size: int) -> Iterator[np.ndarray]:
            for batch in self.batches(max(1, batch_size // self.size[0])):
                yield batch.reshape(-1, *batch.shape[2:])

        return Pictures(self.count * self.size[0], self.size[1:], self.about, batches)

    def changed(self, change: Callable[[UInt8[np.ndarray, "_b ..."], int], UInt8[np.ndarray, "_b ..."]], words: str):
        """The same with each batch changed, which the function is given with the number of its first picture."""

        def batches(batch_size: int) -> Iterator[np.ndarray]:
            number = 0
            for batch in self.batches(batch_size):
                yield change(batch, number)
                number += len(batch)

        return dataclasses.replace(self, about={**self.about, "changed": words}, batches=batches, shares=None)

    def first(self, count: int) -> UInt8[np.ndarray, "_n ..."]:
        """At most `count` of them."""
        return next(self.batches(min(count, self.count)))


def of_dataset(config: DataConfig, info: SourceInfo, limit: int | None = None) -> Pictures:
    """The pictures of `config`'s split, of which `info` tells, not mirrored; at most `limit` of them.

    Fewer than all are the first ones: of a set that is sorted, no fair sample. Clips are therefore spread over the set;
    of each the window that its number draws is taken.
    """
    config = dataclasses.replace(config, flip=False)
    count = info.length if limit is None else min(limit, info.length)

    if config.window is not None:
        chosen = [place * info.length // count for place in range(count)]

        def windows(batch_size: int) -> Iterator[np.ndarray]:
            for batch in one_pass(config, batch_size=batch_size, records=chosen):
                yield batch["video"]

        size = (config.frames, *config.size)
        shares = functools.partial(_shares, config, chosen, "video", size)
        rate = f"stride {config.stride}" if config.fps is None else f"{config.fps:g} frames a second"
        pixels = f"{config.frames} x {config.size[0]} x {config.size[1]}"
        about = {"dataset": info.name, "split": info.split, "pixels": pixels, "window": rate}
        about |= {"spread": str(count)} if count < info.length else {}
        return Pictures(count, size, about, windows, shares)

    def batches(batch_size: int) -> Iterator[np.ndarray]:
        for batch in one_pass(config, batch_size=batch_size, limit=count):
            yield batch["image"]

    shares = functools.partial(_shares, config, range(count), "image", config.size)
    about = {"dataset": info.name, "split": info.split, "pixels": f"{config.size[0]} x {config.size[1]}"}
    return Pictures(count, config.size, about | ({"first": str(count)} if count < info.length else {}), batches, shares)


def _shares(
    config: DataConfig, records: Sequence[int], name: str, size: Size, batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """As `Pictures.shares` has them, of these records."""
    index, every = processes.index(), processes.count()
    each = -(-batch_size // every)
    mine = one_pass(config, batch_size=each, records=records, process_index=index, process_count=every)
    for first in range(0, len(records), each * every):
        total = min(each * every, len(records) - first)
        yield total, next(mine)[name] if total > index else np.zeros((0, *size, 3), np.uint8)


def of_files(path: Path, size: Size | None = None, limit: int | None = None) -> Pictures:
    """The pictures in an .npz, in a directory with a samples.npz, or in a directory of pictures and all below it.

    An npz is read by the rules of `arrays`: `samples` or, as guided-diffusion writes it, `arr_0`: (n, h, w, 3),
    uint8, or floats in [-1, 1].
    size: crop and resize pictures to it, as for training; None: they must be of one size. `samples` of clips are
        (n, frames, height, width, 3).
    limit: take the first so many, in the order of their names.

    Raises:
        DataError: nothing there, pictures of several sizes, arrays of another kind, fewer than `limit`.
    """
    path = _samples_in(path)
    pictures = _of_array(path, size, limit) if is_npz(path) else _of_directory(path, size, limit)
    if limit is not None and limit > pictures.count:
        raise DataError(f"{path}: there are {pictures.count} pictures, and {limit} are asked for")
    return pictures


def read_pictures(
    path: Path, sample_shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "n ..."], Int[np.ndarray, " n"] | None]:
    """Samples (n, *sample_shape), float32, pixels in [-1, 1], and their labels (n,) where they are known.

    path: as of `of_files`. Samples of 1 or 3 channels are pixels; others are latents, which are any finite floats.

    Raises:
        DataError: no pictures, samples of another shape, or numbers that break the rules of `arrays`.
    """
    path = _samples_in(path)
    if is_npz(path):
        samples, labels = read_npz(path)
        if samples.shape[1:] != sample_shape:
            wanted = ", ".join(map(str, sample_shape))
            raise DataError(f"{path}: samples of shape {samples.shape}, where (n, {wanted}) are wanted")
        if sample_shape[-1] in (1, 3):
            check_pixels(path, samples)
        else:
            check_finite(path, samples)
        return to_float(samples) if samples.dtype == np.uint8 else samples.astype(np.float32), labels
    files = _files_in(path)
    if len(sample_shape) != 3 or sample_shape[-1] != 3:
        raise DataError(f"{path}: pictures are (height, width, 3), and {sample_shape} is wanted; give an .npz")
    return np.stack([to_float(read_picture(file, sample_shape[:2])) for file in files]), None


def _samples_in(path: Path) -> Path:
    """The samples.npz of a directory that has one: what `zigma_jax.sample` wrote, without the rounding of pictures."""
    return path / "samples.npz" if (path / "samples.npz").is_file() else path


def _of_array(path: Path, size: Size | None, limit: int | None) -> Pictures:
    array, _ = read_npz(path, limit)
    if array.ndim not in (4, 5) or array.shape[-1] != 3:
        raise DataError(f"{path}: samples of shape {array.shape}, where pictures are (n, [frames,] height, width, 3)")
    if size not in (None, array.shape[1:-1]):
        raise DataError(f"{path}: pictures of {array.shape[1:-1]} pixels, where {size} are wanted")
    check_pixels(path, array)

    def batches(batch_size: int) -> Iterator[np.ndarray]:
        for first in range(0, len(array), batch_size):
            batch = array[first : first + batch_size]
            yield batch if batch.dtype == np.uint8 else to_uint8(batch.astype(np.float32))

    return Pictures(len(array), array.shape[1:-1], {"file": str(path)}, batches)


def _files_in(path: Path) -> list[Path]:
    if not path.is_dir():
        raise DataError(f"{path}: neither a directory of pictures nor an .npz")
    if not (files := find_pictures(path)):
        raise DataError(f"{path}: there are no pictures in it ({', '.join(SUFFIXES)})")
    return files


def _of_directory(path: Path, size: Size | None, limit: int | None) -> Pictures:
    files = _files_in(path)[:limit]
    size = size or _common_size(files)

    def batches(batch_size: int) -> Iterator[np.ndarray]:
        for chosen in itertools.batched(files, batch_size):
            yield np.stack([read_picture(file, (size[0], size[1])) for file in chosen])

    return Pictures(len(files), size, {"directory": str(path)}, batches)


def _common_size(files: list[Path]) -> Size:
    """The size of all, by their headers alone."""
    example: dict[Size, Path] = {}
    for file in files:
        example.setdefault(read_size(file), file)
        if len(example) > 1:
            (a, of_a), (b, of_b) = example.items()
            raise DataError(
                f"pictures of different sizes: {of_a} is {a[0]} x {a[1]}, {of_b} is {b[0]} x {b[1]} pixels; move what "
                "does not belong there away, or give one size to crop and resize all to (--image_size=64)"
            )
    return next(iter(example))

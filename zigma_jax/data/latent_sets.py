"""Latents of every picture of a set, kept beside it: how they lie there, are filled in, summed up, and read.

Whoever makes them, of pictures (`encoded`) or from a file that came with the set (`stored`), gives the rows of pictures
by their numbers. Shards, processes that share the work, bad pictures and statistics are the same for all.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from zigma_jax.data.clips.window import fraction
from zigma_jax.data.config import DataConfig
from zigma_jax.data.encoded_files import EncodedFiles
from zigma_jax.data.encoded_shards import fill_missing, identity_of, placed, shard_size, whole
from zigma_jax.data.reads import BadDataError, Reads
from zigma_jax.data.source import Source, SourceInfo
from zigma_jax.errors import DataError

_SHARD_SIZES = (64, 4096)  # pictures, at least and at most: a kill costs one shard

Rows = list[dict[str, Any]] | str
"""The fields of a picture's views by name, or why there are none."""
RowsOf = Callable[[range], Iterator[list[tuple[int, Rows]]]]
"""Makes the rows of pictures in their order, some pictures at a time."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel, over all positions of latents drawn from an encoded set."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shift(self) -> tuple[float, ...]:
        """With `scale`, makes each channel zero on average with a deviation of one: (z − shift) · scale."""
        return self.mean

    @property
    def scale(self) -> tuple[float, ...]:
        """See `shift`. Raises DataError for a channel that is always the same."""
        if constant := [channel for channel, std in enumerate(self.std) if std < 1e-6]:
            raise DataError(
                f"latent.statistics='measured': channels {constant} of the encoded set are constant, so that nothing "
                "says how to scale them; give latent.scale and latent.shift"
            )
        return tuple(1 / std for std in self.std)


class EncodedSet:
    """A whole encoded set, read by picture number.

    Attributes:
        info: of the data set that was encoded.
        directory: where the encoded set lies.
        fingerprint: of all that determines its numbers.
        shape: (h, w, c) of a picture's latents, or (f, h, w, c) of a window of a clip.
        mirrored: whether mirror images are there too.
        statistics: of the latents.
        unreadable: how many pictures have no latents, because they or what the network made of them were unusable.
    """

    def __init__(self, files: "LatentFiles", info: SourceInfo, summary: Mapping[str, Any]):
        self._files, self._records = files, files.open()
        self.info, self.directory, self.fingerprint = info, files.directory, files.fingerprint
        self.shape: tuple[int, ...] = files.dtype["mean"].shape
        self.mirrored = files.mirrored
        self.statistics = Statistics(tuple(summary["mean"]), tuple(summary["std"]))
        self.unreadable: int = len(summary["unreadable"])

    def __len__(self) -> int:
        return self.info.length

    def read(self, index: int, flip: bool, draw: int = 0) -> np.void:
        """The fields "mean", "std" (if the network has one) and "label" (if there are classes) of one picture.

        draw: 64 random bits, which choose the window of a clip.

        Raises:
            LookupError: the picture could not be encoded; the message says why.
            RuntimeError: the record is damaged.
        """
        if flip and not self.mirrored:
            raise ValueError(f"{self.directory} has no mirror images: it was made with data.flip=False")
        view = int(fraction(draw) * self._files.windows) * (1 + self.mirrored) + flip
        return self._files.unpack(self._records[index * self._files.views + view])

    def batch(self, examples: Sequence[np.void]) -> dict[str, np.ndarray]:
        """Examples of `read` as arrays by name."""
        rows = np.stack(examples)
        return {name: np.ascontiguousarray(rows[name]) for name in self._files.dtype.names or ()}


class LatentFiles(EncodedFiles):
    """The files of an encoded set of latents: a record is the fields of `dtype`, one after the other in C order."""

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """Of one record: a structured dtype of little-endian fields."""
        return np.dtype([(name, kind, tuple(shape)) for name, kind, shape in self.fields])

    @property
    def mirrored(self) -> bool:
        """Whether every other view is a mirror image."""
        return bool(self.identity.get("mirrored"))

    @property
    def windows(self) -> int:
        """Of a clip; 1 of pictures."""
        return self.views // (1 + self.mirrored)

    def pack(self, **arrays: Any) -> bytes:
        """A record of all fields, which are cast to their dtypes."""
        row = np.zeros((), self.dtype)
        for name, value in arrays.items():
            row[name] = value
        return self.pack_data(row.tobytes())

    def unpack(self, record: bytes) -> np.void:
        """The fields of a record by name. Raises LookupError, with the reason, for a picture that has none."""
        data = self.unpack_data(record)
        if len(data) != self.dtype.itemsize:
            raise ValueError(f"a record of {len(data)} bytes, where {self.dtype.itemsize} are wanted")
        return np.frombuffer(data, self.dtype)[0]


def lay_out(
    info: SourceInfo,
    size: tuple[int, int],
    fields: list[Any],
    made_by: Mapping[str, Any],
    maker: str,
    cache: str,
    views: int = 1,
    at_once: int = 1,
    elsewhere: str = "latent.cache=DIRECTORY",
) -> LatentFiles:
    """The files of an encoded set that has `fields`, and labels if there are classes, of pictures of `size`.

    made_by: JSON-able; what determines its numbers, beside the pictures. maker: the same in a word.
    cache: see `encoded_set`. at_once: shards hold a multiple of so many pictures. elsewhere: see `EncodedFiles`.
    """
    identity = {**identity_of(info), "image_size": list(size), **made_by}
    labels = [("label", "<i4", ())] if info.num_classes else []
    all_fields = [[name, kind, list(shape)] for name, kind, shape in labels + fields]
    record_size = sum(math.prod(shape) * np.dtype(kind).itemsize for _, kind, shape in all_fields)
    in_shard = shard_size(info.length, _SHARD_SIZES, at_once)
    files = LatentFiles(Path(), identity, all_fields, record_size, info.length, views, in_shard, elsewhere)
    return placed(files, info, cache, f"{size[0]}x{size[1]}", maker)


def whole_set(
    files: LatentFiles,
    source: Source,
    make_share: Callable[[int, int], None],
    process_index: int | None = None,
    process_count: int | None = None,
) -> EncodedSet:
    """The encoded set in `files`, all of it; `make_share(p, P)` makes the missing shards of process p of P.

    Several processes wait for each other. Raises as `encoded_set`.
    """

    def merge(shards: list[dict[str, Any]]) -> dict[str, Any]:
        unreadable = [index for summary in shards for index in summary["unreadable"]]
        if len(unreadable) == files.pictures:
            raise BadDataError(f"none of the {files.pictures} pictures of {source.info.name} has usable latents")
        count, mean, square, variance = np.sum([summary["moments"] for summary in shards], axis=0)
        mean, square, variance = mean / count, square / count, variance / count
        std = np.sqrt(np.maximum(square - mean**2, 0) + variance)
        return {"mean": mean.tolist(), "std": std.tolist(), "unreadable": unreadable}

    return EncodedSet(files, source.info, whole(files, make_share, merge, process_index, process_count))


def fill_share(
    files: LatentFiles,
    source: Source,
    config: DataConfig,
    rows_of: RowsOf,
    process_index: int,
    process_count: int,
    doing: str = "encoding",
) -> None:
    """Makes those shards of process p of P that are not there yet: p, p + P, … A bar says what it is `doing`.

    Raises as `encoded_set`.
    """

    def fill(shard: int, reads: Reads, bar: tqdm) -> None:
        unreadable: list[int] = []
        moments = np.zeros((4, files.dtype["mean"].shape[-1]))

        def records() -> Iterator[bytes]:
            for batch in rows_of(files.pictures_of(shard)):
                failures: list[tuple[int, str]] = []
                for index, rows in batch:
                    if isinstance(rows, str):
                        failures.append((index, rows))
                        yield from [files.pack_missing(rows)] * files.views
                        continue
                    for row in rows:
                        moments[:] += _moments(row)
                        yield files.pack(**row)
                unreadable.extend(index for index, _ in failures)
                reads.add(len(batch), failures, source.info)
                bar.update(len(batch))

        files.write(shard, records(), lambda: {"unreadable": unreadable, "moments": moments.tolist()})

    fill_missing(files, source, fill, config.max_bad_fraction, process_index, process_count, doing=doing)


def unkeepable(what: str, array: np.ndarray) -> str | None:
    """Why numbers cannot be kept in float16; `what` they are."""
    largest = float(np.abs(array).max())
    if math.isnan(largest):
        return f"{what} is NaN"
    limit = float(np.finfo(np.float16).max)
    return f"{what} reaches {largest:g}; float16 ends at {limit:g}" if largest > limit else None


def _moments(row: dict[str, Any]) -> Float[np.ndarray, "4 c"]:
    """Of a picture's draws by channel, in float64: how many, the sums of means, of their squares, and of variances.

    Of the numbers as they are kept.
    """
    mean = row["mean"].astype(np.float16).astype(np.float64).reshape(-1, row["mean"].shape[-1])
    std = row["std"].astype(np.float16).astype(np.float64).reshape(mean.shape) if "std" in row else np.zeros_like(mean)
    return np.stack([np.full(mean.shape[1], len(mean)), mean.sum(0), (mean**2).sum(0), (std**2).sum(0)])

"""Latents of every picture of a set, kept beside it: how they lie there, are filled in, summed up, and read.

Whoever makes them, of pictures (`encoded`) or from a file that came with the set (`stored`), gives the rows of pictures
by their numbers. Shards, processes that share the work, bad pictures and statistics are the same for all.
"""

import dataclasses
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from zigma_jax.data.config import DataConfig
from zigma_jax.data.encoded_files import EncodedFiles
from zigma_jax.data.reads import BadDataError, Reads
from zigma_jax.data.source import Source, SourceInfo
from zigma_jax.errors import DataError

_SHARDS, _SHARD_SIZES = 64, (64, 4096)  # how many shards, within limits of their pictures: one is what a kill costs

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
        shape: (h, w, c) of a picture's latents.
        mirrored: whether mirror images are there too.
        statistics: of the latents.
        unreadable: how many pictures have no latents, because they or what the network made of them were unusable.
    """

    def __init__(self, files: EncodedFiles, info: SourceInfo, summary: dict[str, Any]):
        self._files, self._records = files, files.open()
        self.info, self.directory, self.fingerprint = info, files.directory, files.fingerprint
        self.shape: tuple[int, ...] = files.dtype["mean"].shape
        self.mirrored = files.views == 2
        self.statistics = Statistics(tuple(summary["mean"]), tuple(summary["std"]))
        self.unreadable: int = len(summary["unreadable"])

    def __len__(self) -> int:
        return self.info.length

    def read(self, index: int, flip: bool) -> np.void:
        """The fields "mean", "std" (if the network has one) and "label" (if there are classes) of one picture.

        Raises:
            LookupError: the picture could not be encoded; the message says why.
            RuntimeError: the record is damaged.
        """
        if flip and not self.mirrored:
            raise ValueError(f"{self.directory} has no mirror images: it was made with data.flip=False")
        return self._files.unpack(self._records[index * self._files.views + flip])

    def batch(self, examples: Sequence[np.void]) -> dict[str, np.ndarray]:
        """Examples of `read` as arrays by name."""
        rows = np.stack(examples)
        return {name: np.ascontiguousarray(rows[name]) for name in self._files.dtype.names or ()}


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
) -> EncodedFiles:
    """The files of an encoded set that has `fields`, and labels if there are classes, of pictures of `size`.

    made_by: JSON-able; what determines its numbers, beside the pictures. maker: the same in a word.
    cache: see `encoded_set`. at_once: shards hold a multiple of so many pictures. elsewhere: see `EncodedFiles`.
    """
    identity = {
        "set": info.name,
        "records": info.fingerprint,
        "split": info.split,
        "length": info.length,
        "image_size": list(size),
        **made_by,
    }
    labels = [("label", "<i4")] if info.num_classes else []
    wanted = min(max(math.ceil(info.length / _SHARDS), _SHARD_SIZES[0]), _SHARD_SIZES[1])
    shard_size = math.ceil(wanted / at_once) * at_once
    files = EncodedFiles(Path(), identity, np.dtype(labels + fields), info.length, views, shard_size, elsewhere)
    base = Path(info.path) / "encoded" if cache == "encoded" else Path(cache).expanduser() / _slug(info.name)
    name = f"{_slug(info.split)}-{size[0]}x{size[1]}-{_slug(maker)}-{files.fingerprint[:16]}"
    return dataclasses.replace(files, directory=base / name)


def whole_set(
    files: EncodedFiles,
    source: Source,
    make_share: Callable[[int, int], None],
    process_index: int | None = None,
    process_count: int | None = None,
) -> EncodedSet:
    """The encoded set in `files`, all of it; `make_share(p, P)` makes the missing shards of process p of P.

    Several processes wait for each other. Raises as `encoded_set`.
    """
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    summary = files.read_index()
    if count > 1 and process_count is None:
        summary = summary if _all_agree(summary is not None) else None
    if summary is None:
        make_share(index, count)
        if count > 1 and process_count is None:
            _all_agree(True)  # all have finished
        summary = _finish(files, source, write=index == 0)
    return EncodedSet(files, source.info, summary)


def fill_share(
    files: EncodedFiles,
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
    missing = set(files.begin())
    mine = range(files.shards)[process_index::process_count]
    reads = Reads(config.max_bad_fraction, "was left out")
    for shard in set(mine) - missing:
        said = files.summary(shard) or {"unreadable": []}
        reads.seen += len(files.pictures_of(shard))
        reads.bad += len(said["unreadable"])
    waiting = deque(shard for shard in mine if shard in missing)
    bar = tqdm(
        total=sum(len(files.pictures_of(shard)) for shard in mine),
        initial=reads.seen,
        unit="picture",
        desc=f"{doing} {source.info.name}",
        disable=process_index > 0,
    )
    with bar:
        while waiting:
            shard = waiting.popleft()
            with files.claim(shard) as claimed:
                there = claimed and files.path(shard).exists() and files.summary(shard) is not None
                if claimed and not there:
                    _fill_shard(shard, source, files, rows_of, reads, bar)
            if there or (not claimed and files.summary(shard) is not None):
                bar.update(len(files.pictures_of(shard)))
            elif not claimed:
                bar.set_postfix_str("another process is at it, too")
                waiting.append(shard)
                time.sleep(0.2)


def _fill_shard(shard: int, source: Source, files: EncodedFiles, rows_of: RowsOf, reads: Reads, bar: tqdm) -> None:
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


def _finish(files: EncodedFiles, source: Source, write: bool) -> dict[str, Any]:
    """The summary of a set whose shards are all there, from theirs."""
    said = [files.summary(shard) for shard in range(files.shards)]
    if missing := [shard for shard, summary in enumerate(said) if summary is None]:
        raise DataError(
            f"{files.directory}: shard {missing[0]} and {len(missing) - 1} others are not there, though every process "
            "has made its own: the directory must be one that all processes share; latent.cache says where it is"
        )
    whole = [summary for summary in said if summary is not None]
    unreadable = [index for summary in whole for index in summary["unreadable"]]
    if len(unreadable) == files.pictures:
        raise BadDataError(f"none of the {files.pictures} pictures of {source.info.name} has usable latents")
    count, mean, square, variance = np.sum([summary["moments"] for summary in whole], axis=0)
    mean, square, variance = mean / count, square / count, variance / count
    std = np.sqrt(np.maximum(square - mean**2, 0) + variance)
    summary = {"mean": mean.tolist(), "std": std.tolist(), "unreadable": unreadable}
    if write:
        files.write_index(summary)
    return summary


def _all_agree(yes: bool) -> bool:
    """Waits for all processes of the run; whether every one says yes."""
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(yes))))


def _slug(name: str) -> str:
    """A name that a file can have."""
    return re.sub(r"[^\w.]+", "_", name).strip("_.")[:80]

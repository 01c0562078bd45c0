"""How the shards of an encoded set get made, whatever is in its records.

The work is divided by shard: a shard is there whole or not at all, so that a stopped process loses one of them. Several
processes of a run take every P-th shard; processes that know nothing of each other claim shards one by one.
"""

import dataclasses
import math
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from zigma_jax.data.encoded_files import EncodedFiles
from zigma_jax.data.reads import Reads
from zigma_jax.data.source import Source, SourceInfo
from zigma_jax.errors import DataError

_SHARDS = 64  # how many there are, as far as the limits allow


def shard_size(length: int, limits: tuple[int, int], multiple: int = 1) -> int:
    """Pictures in each shard of a set of `length` pictures: a multiple of `multiple`, about between `limits`."""
    wanted = min(max(math.ceil(length / _SHARDS), limits[0]), limits[1])
    return math.ceil(wanted / multiple) * multiple


def identity_of(info: SourceInfo) -> dict[str, Any]:
    """What tells the records of a split from any others."""
    return {"set": info.name, "records": info.fingerprint, "split": info.split, "length": info.length}


def placed[F: EncodedFiles](files: F, info: SourceInfo, cache: str, *about: str) -> F:
    """The files in a directory of their own: beside the set's records if `cache` is "encoded", else in that directory.

    about: what the directory's name says, beside the split and the fingerprint.
    """
    base = Path(info.path) / "encoded" if cache == "encoded" else Path(cache).expanduser() / _slug(info.name)
    name = "-".join([*map(_slug, (info.split, *about)), files.fingerprint[:16]])
    return dataclasses.replace(files, directory=base / name)


def whole(
    files: EncodedFiles,
    make_share: Callable[[int, int], None],
    merge: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
    process_index: int | None = None,
    process_count: int | None = None,
) -> Mapping[str, Any]:
    """The summary of a set all of whose shards are there, made where they are missing. Processes wait for each other.

    Args:
        files: of the set.
        make_share: makes the missing shards of process p of P.
        merge: the summary of the set from those of its shards.
        process_index, process_count: which share this process makes; by default jax's.

    Raises:
        DataError: processes do not see each other's shards.
    """
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    summary = files.read_index()
    if count > 1 and process_count is None:
        summary = summary if _all_agree(summary is not None) else None
    if summary is not None:
        return summary
    make_share(index, count)
    if count > 1 and process_count is None:
        _all_agree(True)  # all have finished
    said = [files.summary(shard) for shard in range(files.shards)]
    if missing := [shard for shard, summary in enumerate(said) if summary is None]:
        raise DataError(
            f"{files.directory}: shard {missing[0]} and {len(missing) - 1} others are not there, though every process "
            f"has made its own: the directory must be one that all processes share, as {files.elsewhere} can name"
        )
    summary = merge([summary for summary in said if summary is not None])
    if index == 0:
        files.write_index(summary)
    return summary


def fill_missing(
    files: EncodedFiles,
    source: Source,
    fill: Callable[[int, Reads, tqdm], None],
    max_bad_fraction: float,
    process_index: int,
    process_count: int,
    *,
    doing: str,
    unit: str = "picture",
    total: int | None = None,
    units: Callable[[int, Mapping[str, Any]], int] | None = None,
) -> None:
    """Makes those shards of process p of P that are not there yet: p, p + P, …

    Args:
        files: of the set.
        source: the records that it is made of.
        fill: writes one shard, counts what it reads, and moves the bar.
        max_bad_fraction: of the records may be unreadable. A shard's summary lists those as "unreadable".
        process_index, process_count: p and P.
        doing: what the bar says.
        unit: of the bar.
        total: units of the whole set, perhaps an estimate; None: its pictures.
        units: how many a shard has that is there, by its number and summary; None: its pictures.

    Raises:
        DataError: the disk is full, or the directory cannot be written.
        BadDataError: too many records are unreadable.
    """
    units = units or (lambda shard, said: len(files.pictures_of(shard)))
    missing = set(files.begin())
    mine = range(files.shards)[process_index::process_count]
    reads, done = Reads(max_bad_fraction, "was left out"), 0
    for shard in set(mine) - missing:
        said = files.summary(shard) or {"unreadable": []}
        reads.seen += len(files.pictures_of(shard))
        reads.bad += len(said["unreadable"])
        done += units(shard, said)
    pictures = sum(len(files.pictures_of(shard)) for shard in mine)
    waiting = deque(shard for shard in mine if shard in missing)
    bar = tqdm(
        total=pictures if total is None else round(total * pictures / files.pictures),
        initial=done,
        unit=unit,
        desc=f"{doing} {source.info.name}",
        disable=process_index > 0,
    )
    with bar:
        while waiting:
            shard = waiting.popleft()
            with files.claim(shard) as claimed:
                said = files.summary(shard) if claimed and files.path(shard).exists() else None
                if claimed and said is None:
                    fill(shard, reads, bar)
            if not claimed:
                said = files.summary(shard)
            if said is not None:
                bar.update(units(shard, said))
            elif not claimed:
                bar.set_postfix_str("another process is at it, too")
                waiting.append(shard)
                time.sleep(0.2)
        bar.total = bar.n
        bar.refresh()


def _all_agree(yes: bool) -> bool:
    """Waits for all processes of the run; whether every one says yes."""
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(yes))))


def _slug(name: str) -> str:
    """A name that a file can have."""
    return re.sub(r"[^\w.]+", "_", name).strip("_.")[:80]

"""Pictures encoded once: the posterior of every picture of a set, kept beside the set.

An encoded set holds the mean and the standard deviation of each picture's latents in float16, and the same of its
mirror image if `data.flip`. It is found by what it was made of and by: data set, version, split, size and crop of the
pictures, network and its weights. Whatever of that changes, the set is another one.

Pictures are always computed in the same groups, whatever the number of devices and processes, because a network's
rounding may depend on how many pictures it sees at once: so the files are the same to the byte.
"""

import dataclasses
import functools
import itertools
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float
from tqdm import tqdm

from zigma_jax.data.config import DataConfig
from zigma_jax.data.encoded_files import EncodedFiles
from zigma_jax.data.pictures.decode import decode
from zigma_jax.data.pictures.pixels import CROP, center_crop, to_float
from zigma_jax.data.posterior import Autoencoder, posterior
from zigma_jax.data.reads import BadDataError, Reads
from zigma_jax.data.sources import Source, SourceInfo
from zigma_jax.errors import ConfigError, DataError

_PIXELS_AT_ONCE = 2**19  # a device computes: 8 pictures of 256 x 256
_MOST_AT_ONCE = 64
_SHARDS, _SHARD_SIZES = 64, (64, 4096)  # how many shards, within limits of their pictures: one is what a kill costs


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


def encoded_set(
    source: Source,
    config: DataConfig,
    autoencoder: Autoencoder,
    *,
    cache: str = "encoded",
    devices: Sequence[Any] | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> EncodedSet:
    """The encoded set of a data set's pictures, made if it is not there, with a progress bar.

    What a stopped process has finished is kept. Several processes divide the work, and all of them return when the
    whole is there; processes that know nothing of each other may ask for the same set at the same time.

    Args:
        source: the pictures.
        config: how they are cropped, and whether mirrored: `size`, `flip`, `max_bad_fraction`.
        autoencoder: what encodes them.
        cache: "encoded": beside the pictures' records; otherwise a directory for encoded sets.
        devices: that compute; by default all of this process.
        process_index, process_count: which share of the shards this process makes; by default jax's.

    Raises:
        ConfigError: the autoencoder's factor does not divide the size of the pictures.
        DataError: the disk is full, or the directory cannot be written or is not the same for all processes.
        BadDataError: more pictures are unusable than `config.max_bad_fraction` allows.
    """
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    files = describe(source, config, autoencoder, cache)
    summary = files.read_index()
    if count > 1 and process_count is None:
        summary = summary if _all_agree(summary is not None) else None
    if summary is None:
        encode_share(source, config, autoencoder, files, devices, index, count)
        if count > 1 and process_count is None:
            _all_agree(True)  # all have finished
        summary = _finish(files, source, write=index == 0)
    return EncodedSet(files, source.info, summary)


def describe(source: Source, config: DataConfig, autoencoder: Autoencoder, cache: str = "encoded") -> EncodedFiles:
    """Which encoded set belongs to pictures and network, and where it lies. Reads and writes nothing."""
    check_size(config, autoencoder)
    info, size = source.info, config.size
    picture = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    mean, std = jax.eval_shape(posterior, autoencoder, picture)
    shape = mean.shape[1:]
    fields = [("label", "<i4")] if info.num_classes else []
    fields += [("mean", "<f2", shape)] + ([] if std is None else [("std", "<f2", shape)])
    identity = {
        "set": info.name,
        "records": info.fingerprint,
        "split": info.split,
        "length": info.length,
        "image_size": list(size),
        "crop": CROP,
        "mirrored": config.flip,
        "autoencoder": autoencoder.name,
        "weights": autoencoder.fingerprint,
        "dtypes": sorted({leaf.dtype.name for leaf in jax.tree.leaves(autoencoder)}),  # it rounds as its weights do
    }
    at_once = _at_once(size)
    wanted = min(max(math.ceil(info.length / _SHARDS), _SHARD_SIZES[0]), _SHARD_SIZES[1])
    shard_size = math.ceil(wanted / at_once) * at_once
    files = EncodedFiles(Path(), identity, np.dtype(fields), info.length, 1 + config.flip, shard_size)
    base = Path(info.path) / "encoded" if cache == "encoded" else Path(cache).expanduser() / _slug(info.name)
    name = f"{_slug(info.split)}-{size[0]}x{size[1]}-{_slug(autoencoder.name)}-{files.fingerprint[:16]}"
    return dataclasses.replace(files, directory=base / name)


def check_size(config: DataConfig, autoencoder: Autoencoder) -> None:
    """Raises ConfigError unless the autoencoder's factor divides the size of the pictures."""
    if any(pixels % autoencoder.factor for pixels in config.size):
        raise ConfigError(
            f"config.data.image_size = {config.size}: must be a multiple of {autoencoder.factor}, the factor of "
            f"{autoencoder.name}"
        )


def encode_share(
    source: Source,
    config: DataConfig,
    autoencoder: Autoencoder,
    files: EncodedFiles,
    devices: Sequence[Any] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> None:
    """Makes those shards of process p of P that are not there yet: p, p + P, … Raises as `encoded_set`."""
    missing = set(files.begin())
    mine = range(files.shards)[process_index::process_count]
    encoder = _Encoder(autoencoder, devices or jax.local_devices(), _at_once(config.size), files)
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
        desc=f"encoding {source.info.name}",
        disable=process_index > 0,
    )
    with ThreadPoolExecutor(os.cpu_count()) as threads, bar:
        while waiting:
            shard = waiting.popleft()
            with files.claim(shard) as claimed:
                there = claimed and files.path(shard).exists() and files.summary(shard) is not None
                if claimed and not there:
                    _encode_shard(shard, source, config, files, encoder, reads, threads, bar)
            if there or (not claimed and files.summary(shard) is not None):
                bar.update(len(files.pictures_of(shard)))
            elif not claimed:
                bar.set_postfix_str("another process is at it, too")
                waiting.append(shard)
                time.sleep(0.2)


def _encode_shard(
    shard: int,
    source: Source,
    config: DataConfig,
    files: EncodedFiles,
    encoder: "_Encoder",
    reads: Reads,
    threads: ThreadPoolExecutor,
    bar: tqdm,
) -> None:
    unreadable: list[int] = []
    moments = np.zeros((4, files.dtype["mean"].shape[-1]))

    def records() -> Iterator[bytes]:
        read = functools.partial(_read, source, config.size)
        for batch in _ahead(threads, read, itertools.batched(files.pictures_of(shard), encoder.batch_size)):
            failures: list[tuple[int, str]] = []
            for index, rows in encoder(batch):
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


Picture = tuple[np.ndarray, int] | str
"""uint8 pixels (h, w, 3) and label (-1 where there are no classes), or what is wrong with the picture."""


def _read(source: Source, size: tuple[int, int], index: int) -> tuple[int, Picture]:
    try:
        record = source[index]
        pixels = center_crop(decode(source.picture(record)), size)
    except Exception as error:  # damage shows as any exception of the reader, parser or decoder
        return index, f"{type(error).__name__}: {error}"
    return index, (pixels, source.label(record) if source.info.num_classes else -1)


def _ahead(threads: ThreadPoolExecutor, read: Callable, batches: Iterable[tuple[int, ...]]) -> Iterator[list]:
    """The pictures of each batch, those of the next being read meanwhile."""
    pending: deque[list[Future]] = deque()
    for batch in batches:
        pending.append([threads.submit(read, index) for index in batch])
        if len(pending) > 1:
            yield [future.result() for future in pending.popleft()]
    while pending:
        yield [future.result() for future in pending.popleft()]


class _Encoder:
    """Posteriors of pictures, by the same number of them at once on each device."""

    def __init__(self, autoencoder: Autoencoder, devices: Sequence[Any], at_once: int, files: EncodedFiles):
        mesh = Mesh(np.asarray(devices), ("pictures",))
        self.batch_size = at_once * len(devices)
        self._divided = NamedSharding(mesh, PartitionSpec("pictures"))
        self._autoencoder = jax.device_put(autoencoder, NamedSharding(mesh, PartitionSpec()))
        self._posterior = jax.jit(
            jax.shard_map(
                posterior,
                mesh=mesh,
                in_specs=(PartitionSpec(), PartitionSpec("pictures")),
                out_specs=PartitionSpec("pictures"),
                check_vma=False,
            )
        )
        self._views, self._labels = files.views, "label" in (files.dtype.names or ())

    def __call__(self, batch: list[tuple[int, Picture]]) -> Iterator[tuple[int, list[dict[str, Any]] | str]]:
        """For each picture the fields of its views, or why there are none."""
        shape = next((picture[0].shape for _, picture in batch if not isinstance(picture, str)), None)
        if shape is None:
            yield from batch  # pyright: ignore[reportReturnType] - all are messages
            return
        pixels = np.zeros((self.batch_size, *shape), np.uint8)
        for place, (_, picture) in enumerate(batch):
            if not isinstance(picture, str):
                pixels[place] = picture[0]
        views = [self._encode(view) for view in (pixels, pixels[:, :, ::-1])[: self._views]]
        for place, (index, picture) in enumerate(batch):
            if isinstance(picture, str):
                yield index, picture
                continue
            rows = [{name: array[place] for name, array in view.items()} for view in views]
            wrong = next(filter(None, (_wrong(name, array) for row in rows for name, array in row.items())), None)
            label = {"label": picture[1]} if self._labels else {}
            yield index, wrong or [row | label for row in rows]

    def _encode(self, pixels: np.ndarray) -> dict[str, Float[np.ndarray, "b h w c"]]:
        mean, std = self._posterior(self._autoencoder, jax.device_put(to_float(pixels), self._divided))
        return {"mean": np.asarray(mean)} | ({} if std is None else {"std": np.asarray(std)})


def _wrong(name: str, array: np.ndarray) -> str | None:
    """Why numbers of the network cannot be kept in float16."""
    largest = float(np.abs(array).max())
    if math.isnan(largest):
        return f"the autoencoder's {name} of it is NaN"
    limit = float(np.finfo(np.float16).max)
    return f"the autoencoder's {name} of it reaches {largest:g}; float16 ends at {limit:g}" if largest > limit else None


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
        raise BadDataError(f"none of the {files.pictures} pictures of {source.info.name} could be encoded")
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


def _at_once(size: tuple[int, int]) -> int:
    """Pictures that a device computes at once: by their size alone, see above."""
    return min(max(_PIXELS_AT_ONCE // math.prod(size), 1), _MOST_AT_ONCE)


def _slug(name: str) -> str:
    """A name that a file can have."""
    return re.sub(r"[^\w.]+", "_", name).strip("_.")[:80]

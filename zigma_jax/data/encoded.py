"""Pictures encoded once: the posterior of every picture of a set, kept beside the set.

An encoded set holds the mean and the standard deviation of each picture's latents in float16, and the same of its
mirror image if `data.flip`. Of a clip there are some windows, spread evenly over it, each frame of which is encoded as
a picture; every time that the clip is seen one of them is drawn. A set is found by what it was made of and by: data
set, version, split, size and crop of the pictures, window of clips, network and its weights. Whatever of that changes,
the set is another one.

Pictures are always computed in the same groups, whatever the number of devices and processes, because a network's
rounding may depend on how many pictures it sees at once: so the files are the same to the byte.
"""

import dataclasses
import functools
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from zigma_jax.data.clips.decode import read_clip
from zigma_jax.data.config import DataConfig
from zigma_jax.data.latent_sets import EncodedSet, LatentFiles, Rows, fill_share, lay_out, unkeepable, whole_set
from zigma_jax.data.pictures.decode import decode
from zigma_jax.data.pictures.pixels import CROP, center_crop, to_float
from zigma_jax.data.posterior import Autoencoder, posterior
from zigma_jax.data.source import Source, check_kind
from zigma_jax.errors import ConfigError, MissingPackageError

_PIXELS_AT_ONCE = 2**19  # a device computes: 8 pictures of 256 x 256
_MOST_AT_ONCE = 64


def encoded_set(
    source: Source,
    config: DataConfig,
    autoencoder: Autoencoder,
    *,
    cache: str = "encoded",
    windows: int = 1,
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
        windows: of each clip; of no effect on pictures.
        devices: that compute; by default all of this process.
        process_index, process_count: which share of the shards this process makes; by default jax's.

    Raises:
        ConfigError: the autoencoder's factor does not divide the size of the pictures.
        DataError: the disk is full, or the directory cannot be written or is not the same for all processes.
        BadDataError: more pictures are unusable than `config.max_bad_fraction` allows.
    """
    files = describe(source, config, autoencoder, cache, windows)
    return whole_set(
        files, source, lambda *share: encode_share(source, config, autoencoder, files, devices, *share),
        process_index, process_count,
    )  # fmt: skip


def describe(
    source: Source, config: DataConfig, autoencoder: Autoencoder, cache: str = "encoded", windows: int = 1
) -> LatentFiles:
    """Which encoded set belongs to pictures and network, and where it lies. Reads and writes nothing."""
    check_size(config, autoencoder)
    check_kind(source.info, config.frames)
    size, windows = config.size, windows if config.frames else 1
    frames = (config.frames,) if config.frames else ()
    picture = jax.ShapeDtypeStruct((1, *frames, *size, 3), np.float32)
    mean, std = jax.eval_shape(posterior, autoencoder, picture)
    shape = mean.shape[1:]
    fields = [("mean", "<f2", shape)] + ([] if std is None else [("std", "<f2", shape)])
    made_by = {
        "crop": CROP,
        "mirrored": config.flip,
        "autoencoder": autoencoder.name,
        "weights": autoencoder.fingerprint,
        "dtypes": sorted({leaf.dtype.name for leaf in jax.tree.leaves(autoencoder)}),  # it rounds as its weights do
    }
    if config.window is not None:
        made_by |= {"window": dataclasses.asdict(config.window), "windows": windows}
    views = windows * (1 + config.flip)
    return lay_out(source.info, size, fields, made_by, autoencoder.name, cache, views, _at_once(size))


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
    files: LatentFiles,
    devices: Sequence[Any] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> None:
    """Encodes those shards of process p of P that are not there yet. Raises as `encoded_set`."""
    encoder = _Encoder(autoencoder, devices or jax.local_devices(), _at_once(config.size), files)
    with ThreadPoolExecutor(os.cpu_count()) as threads:

        def encode(pictures: range) -> Iterator[list[tuple[int, Rows]]]:
            read = functools.partial(_read, source, config, files.windows)
            for batch in _ahead(threads, read, itertools.batched(pictures, encoder.batch_size)):
                yield list(encoder(batch))

        fill_share(files, source, config, encode, process_index, process_count)


Picture = tuple[np.ndarray, int] | str
"""uint8 pixels (1, h, w, 3), of a clip (windows, f, h, w, 3), and label (-1 where there are no classes); or what is
wrong with the picture."""


def _read(source: Source, config: DataConfig, windows: int, index: int) -> tuple[int, Picture]:
    try:
        record = source[index]
        if config.window is None:
            pixels = center_crop(decode(source.picture(record)), config.size)[None]
        else:
            clip, places = source.clip(record), (np.arange(windows) + 0.5) / windows
            pixels = np.stack([read_clip(clip, config.window, float(place), config.size) for place in places])
    except MissingPackageError:
        raise
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

    def __init__(self, autoencoder: Autoencoder, devices: Sequence[Any], at_once: int, files: LatentFiles):
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
        self._mirrored, self._labels = files.mirrored, "label" in (files.dtype.names or ())

    def __call__(self, batch: list[tuple[int, Picture]]) -> Iterator[tuple[int, Rows]]:
        """For each picture the fields of its views, or why there are none."""
        shape = next((picture[0].shape for _, picture in batch if not isinstance(picture, str)), None)
        if shape is None:
            yield from batch  # pyright: ignore[reportReturnType] - all are messages
            return
        pixels = np.zeros((self.batch_size, *shape), np.uint8)
        for place, (_, picture) in enumerate(batch):
            if not isinstance(picture, str):
                pixels[place] = picture[0]
        views = []
        for number in range(pixels.shape[1]):
            window = pixels[:, number]
            views.append(self._encode(window))
            if self._mirrored:
                views.append(self._encode(window[..., ::-1, :]))
        for place, (index, picture) in enumerate(batch):
            if isinstance(picture, str):
                yield index, picture
                continue
            rows = [{name: array[place] for name, array in view.items()} for view in views]
            wrong = next(
                filter(
                    None,
                    (unkeepable(f"the autoencoder's {name} of it", a) for row in rows for name, a in row.items()),
                ),
                None,
            )
            label = {"label": picture[1]} if self._labels else {}
            yield index, wrong or [row | label for row in rows]

    def _encode(self, pixels: np.ndarray) -> dict[str, Float[np.ndarray, "b *f h w c"]]:
        mean, std = self._posterior(self._autoencoder, jax.device_put(to_float(pixels), self._divided))
        return {"mean": np.asarray(mean)} | ({} if std is None else {"std": np.asarray(std)})


def _at_once(size: tuple[int, int]) -> int:
    """Pictures that a device computes at once: by their size alone, see above."""
    return min(max(_PIXELS_AT_ONCE // math.prod(size), 1), _MOST_AT_ONCE)

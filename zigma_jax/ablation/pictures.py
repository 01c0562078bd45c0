"""A data set of pictures or clips held in memory, and the order in which a run reads it."""

import dataclasses
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from zigma_jax.data.config import DataConfig
from zigma_jax.errors import ConfigError
from zigma_jax.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Two splits, decoded and resized, and what they are: set, splits, size, checksum.

    Of clips there is one window each, (f, h, w, 3).
    """

    train: UInt8[np.ndarray, "n *size 3"]
    held_out: UInt8[np.ndarray, "m *size 3"]
    about: dict[str, str]


def load_pictures(config: DataConfig, held_out: str, cache: Path) -> Pictures:
    """The pictures of `config.split` and `held_out`, read from the data set once and then from `cache`.

    With the file in place neither the data set nor the libraries that read it are needed.

    Raises:
        ValueError: `cache` holds other pictures.
    """
    asked = {
        "set": config.folder or config.name,
        "train": config.split,
        "held_out": held_out,
        "size": "x".join(map(str, config.size)),
    }
    if config.window:
        asked["window"] = json.dumps(dataclasses.asdict(config.window))
    if not cache.exists():
        train, others = _read(config), _read(dataclasses.replace(config, split=held_out))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, train=train, held_out=others, about=json.dumps(asked))
        write_atomically(cache, buffer.getvalue())
    with np.load(cache) as file:
        train, others, about = file["train"], file["held_out"], json.loads(str(file["about"]))
    if about != asked:
        raise ConfigError(
            f"{cache} holds pictures of {about}, the configuration asks for {asked}; choose another workdir"
        )
    checksum = zlib.crc32(others.tobytes(), zlib.crc32(train.tobytes()))
    return Pictures(train, others, about | {"crc32": f"{checksum:08x}"})


def _read(config: DataConfig) -> UInt8[np.ndarray, "n *size 3"]:
    from zigma_jax.data.pipeline import one_pass  # with it come grain and tensorflow-datasets

    name = "video" if config.window else "image"
    return np.concatenate([batch[name] for batch in one_pass(config, batch_size=256)])


def training_batches(
    count: int, batch_size: int, seed: int, flip: bool
) -> Iterator[tuple[Int32[np.ndarray, " b"], Bool[np.ndarray, " b"]]]:
    """Endless batches of (rows, whether mirrored): each epoch another permutation, without a gap between epochs.

    Decided by (count, batch_size, seed) alone, so that every order reads the same pictures at the same step.
    """
    rows, mirrored = np.zeros(0, np.int32), np.zeros(0, bool)
    for epoch in itertools.count():
        rng = np.random.default_rng((seed, epoch))
        rows = np.concatenate([rows, rng.permutation(count).astype(np.int32)])
        mirrored = np.concatenate([mirrored, rng.random(count) < (0.5 if flip else 0.0)])
        while len(rows) >= batch_size:
            yield rows[:batch_size], mirrored[:batch_size]
            rows, mirrored = rows[batch_size:], mirrored[batch_size:]

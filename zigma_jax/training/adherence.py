"""Do samples show what was asked for? A probe, trained on the data set's attributes, reads them."""

import dataclasses
import hashlib
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from zigma_jax.data.attributes import CLASS, UNSEEN, Values, asked_in_captions, attribute_names, attribute_values
from zigma_jax.data.config import DataConfig
from zigma_jax.data.pipeline import one_pass
from zigma_jax.data.source import Source
from zigma_jax.data.sources import open_source
from zigma_jax.errors import ConfigError
from zigma_jax.metrics.probe import Probe, ProbeConfig, cached_probe, read
from zigma_jax.training.prompts import captions_of, held_out, spread

SCALES = (1.0, 3.0, 5.0)
"""The scales of guidance that samples are drawn at."""
SAMPLES = 500
"""How many at each scale, unless told otherwise: a share is then known to some two percent."""
_TRAINED_ON, _HELD_OUT = 20_000, 2_000  # pictures at most


@dataclasses.dataclass(frozen=True)
class Reader:
    """A probe for the attributes of a data set, and how far it can be trusted.

    names: of each attribute the values. accuracy: of the probe, on held-out pictures, where they show the attribute.
    chance: the share of the most frequent value there, what a guess would get. about: the probe in words.
    """

    probe: Probe
    names: Mapping[str, tuple[str, ...]]
    accuracy: Mapping[str, float]
    chance: Mapping[str, float]
    about: Mapping[str, str]

    def shares(self, images: UInt8[np.ndarray, "n h w 3"], wanted: Values) -> dict[str, float]:
        """Of each attribute in `wanted`, the share of pictures that show it as wanted; of those that want it at all."""
        found = read(self.probe, images)
        return {name: share(found[name], of) for name, of in wanted.items() if np.any(of != UNSEEN)}


def share(found: np.ndarray, wanted: np.ndarray) -> float:
    """How many of the values that are wanted were found."""
    return float(np.mean(found[wanted != UNSEEN] == wanted[wanted != UNSEEN]))


def open_reader(data: DataConfig) -> tuple[Reader, Source]:
    """The reader for a data set's attributes at `data.size` pixels, and the set's held-out records.

    The probe is trained on first use, and kept beside the records.

    Raises:
        ConfigError: a set without classes or attributes, or without pictures or records held out.
    """
    source, other = open_source(data), held_out(data)
    names = attribute_names(source)
    if not names or not source.info.has_pictures:
        missing = "neither classes nor attributes" if source.info.has_pictures else "no pictures"
        raise ConfigError(f"--adherence: {source.info.name} has {missing} for a probe to learn")
    if other.info.split == source.info.split:
        raise ConfigError(f"--adherence: {source.info.name} has no split test or validation to try the probe on")
    cfg = ProbeConfig(data.size, {name: len(values) for name, values in names.items()}, flip=data.flip)
    about = {"records": source.info.fingerprint, "at_most": _TRAINED_ON}
    probe = cached_probe(_path(source, cfg), cfg, about, lambda: _pictures(data, source, _TRAINED_ON))
    images, values = _pictures(dataclasses.replace(data, split=other.info.split), other, _HELD_OUT)
    found = read(probe, images)
    shown = {name: of for name, of in values.items() if np.any(of != UNSEEN)}
    return Reader(
        probe,
        names,
        {name: share(found[name], of) for name, of in shown.items()},
        {name: share(np.full_like(of, np.bincount(of[of != UNSEEN]).argmax()), of) for name, of in shown.items()},
        {
            "trained on": f"{min(len(source), _TRAINED_ON):,} of {source.info.name}, split {source.info.split}",
            "tried on": f"{len(images):,}, split {other.info.split}",
        },
    ), other


def asked_of_classes(labels: np.ndarray, num_classes: int) -> Values:
    """What samples drawn for these labels are asked to show."""
    return {CLASS: np.where(labels < num_classes, labels, UNSEEN)}  # the null class asks for nothing


def asked_of_text(source: Source, count: int) -> tuple[list[str], Values]:
    """Captions for `count` samples, one a record, and what they ask for."""
    captions = captions_of(source, count)
    return captions, asked_in_captions(source, spread(source, count), captions)


def table(reader: Reader, shares: Mapping[float, Mapping[str, float]], wanted: Values) -> dict[str, dict[str, Any]]:
    """Of each attribute that was asked for: `asked`, how often; the shares by guidance; `probe` and `chance`."""
    rows = {}
    for name in next(iter(shares.values())):
        at_scale = {f"guidance {scale:g}": of[name] for scale, of in shares.items()}
        of_probe = {"probe": reader.accuracy.get(name), "chance": reader.chance.get(name)}
        rows[name] = {"asked": int(np.sum(wanted[name] != UNSEEN)), **at_scale, **of_probe}
    return rows


def print_table(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """The rows, with shares in percent."""
    columns = list(next(iter(rows.values())))
    print(" " * 16 + "".join(f"{name:>13}" for name in columns))
    for name, row in rows.items():
        shown = (f"{n:,}" if isinstance(n, int) else "" if n is None else f"{100 * n:.1f} %" for n in row.values())
        print(f"{name:16}" + "".join(f"{text:>13}" for text in shown))


def _pictures(data: DataConfig, source: Source, most: int) -> tuple[UInt8[np.ndarray, "n h w 3"], Values]:
    """At most so many of a set's pictures, spread over it, and what they show."""
    records: Sequence[int] = spread(source, min(most, len(source))).tolist()
    batches = list(one_pass(data, batch_size=64, records=records))
    images = np.concatenate([batch["image"] for batch in batches])
    return images, attribute_values(source, np.concatenate([batch["index"] for batch in batches]))


def _path(source: Source, cfg: ProbeConfig) -> Path:
    digest = hashlib.sha256(repr((source.info.fingerprint, cfg)).encode()).hexdigest()[:12]
    split = urllib.parse.quote(source.info.split, safe="")
    return Path(source.info.path) / "probes" / f"{split}-{'x'.join(map(str, cfg.size))}-{digest}.safetensors"

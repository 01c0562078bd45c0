"""Measuring pictures against a data set: what `zigma_jax.evaluate` and evaluations during training share."""

import dataclasses
import json
import math
import os
import re
import sys
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from tqdm import tqdm

from zigma_jax import processes
from zigma_jax.data.pictures.pixels import to_float
from zigma_jax.data.pictures.sets import Pictures, of_dataset
from zigma_jax.data.pipeline import open_source
from zigma_jax.data.sources import Source
from zigma_jax.errors import ConfigError
from zigma_jax.files import AnyPath, write_atomically
from zigma_jax.metrics import (
    LOWER_IS_BETTER,
    FeatureExtractor,
    Features,
    FewSamplesWarning,
    Gaussian,
    cached_features,
    check_metrics,
    compute,
    extract,
    metric_label,
)
from zigma_jax.metrics.features import GAUSSIAN, KEPT, Share
from zigma_jax.models.families import BackboneConfig
from zigma_jax.networks import load_network
from zigma_jax.networks.clip import Clip
from zigma_jax.processes import from_primary, primary_first
from zigma_jax.training.best import Evaluations
from zigma_jax.training.config import RunConfig
from zigma_jax.training.decoding import Decoder
from zigma_jax.training.logging import MetricLogger
from zigma_jax.training.prompts import Conditions, Prompts, captions_of, spread
from zigma_jax.training.sampling import Labels, Sampler, batches, choose_labels
from zigma_jax.training.state import Params

PSNR = "PSNR"
CLIP_SCORE = "CLIP score"
KEEP = 50_000  # pictures whose every feature is kept


def drawn(
    draw: Sampler,
    params: Params,
    decoder: Decoder,
    model: BackboneConfig,
    count: int,
    conditions: Conditions,
    about: Mapping[str, str],
) -> Pictures:
    """The first `count` samples that `draw` draws for `conditions`, as the pictures that `decoder` makes of them.

    Drawn anew each time that they are gone through, which raises DivergedError for samples that are not finite.
    """

    def pictures(batch_size: int) -> Iterator[UInt8[np.ndarray, "_b ..."]]:
        for numbers, asked in batches(count, min(batch_size, count)):
            samples = draw(params, numbers, conditions(numbers % count))[:asked]
            yield decoder.checked(samples, int(numbers[0]))

    return Pictures(count, decoder.picture_shape[:-1], about, pictures)


def seen_by(extractor: FeatureExtractor, pictures: Pictures) -> Pictures:
    """What a network is to look at: a network of pictures sees every frame of clips.

    Raises:
        ConfigError: a network of videos, and there are pictures.
    """
    if not getattr(extractor, "of_videos", False):
        return pictures.frames()
    if not pictures.are_clips:
        raise ConfigError(f"--network={extractor.name}: is a network of videos, and there are pictures")
    return pictures


def labels_as_in(source: Source, model: BackboneConfig, count: int) -> tuple[Labels, str]:
    """Labels (count,) for samples to be compared with a data set, as frequent as there, and that in words.

    Every class in turn if the data set has no classes, or more than the model.
    """
    if not 0 < source.info.num_classes <= model.num_classes:
        return choose_labels(model, np.arange(count)), "every class in turn" if model.num_classes else "none"
    labels = [source.label(source[int(record)]) for record in spread(source, count)]
    return np.array(labels, np.int32), "as in the data set"


def labels_at(labels: Labels) -> Conditions:
    """What samples are drawn for, by their numbers: their labels, or nothing."""
    return lambda numbers: None if labels is None else labels[numbers]


def features_path(source: Source, pictures: Pictures, extractor: FeatureExtractor) -> Path:
    """Where the features of a data set are kept: beside its records, a file for each split, size and network."""
    split = urllib.parse.quote(source.info.split, safe="")
    size = "x".join(map(str, pictures.size))
    if "window" in pictures.about:
        size += "-" + re.sub(r"\W+", "", pictures.about["window"] + pictures.about.get("spread", ""))
    network = re.sub(r"[^\w.-]", "_", extractor.name)
    return Path(source.info.path) / "features" / f"{split}-{size}-{network}-{extractor.fingerprint[:12]}.npz"


def check_before(
    extractor: FeatureExtractor,
    samples: Pictures,
    reference: Pictures | Features,
    metrics: Sequence[str] | None,
) -> list[str]:
    """The metrics that will be computed (None: all that can be). Warns and raises as they would, before any work."""
    if isinstance(reference, Pictures):
        reference = _promised(extractor, seen_by(extractor, reference))
    return check_metrics(_promised(extractor, seen_by(extractor, samples)), reference, metrics)


def reference_features(
    path: Path, extractor: FeatureExtractor, pictures: Pictures, batch_size: int, mesh: Mesh
) -> Features:
    """The features in `path`, or those of `pictures`, written there.

    Raises as `cached_features`, and ConfigError at once if the file could not be written.
    """

    def check() -> None:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not path.exists() and not os.access(folder, os.W_OK):
            message = f"features of the data set cannot be written to {path}: name another file (eval.reference)"
            raise ConfigError(message)

    from_primary(check)
    pictures = seen_by(extractor, pictures)

    def batches() -> Iterator[Any]:
        return with_bar(pictures, _at_once(pictures, batch_size), f"reference ({extractor.name})")

    return cached_features(path, extractor, batches, pictures.about, mesh=mesh, keep=KEEP)


def _at_once(pictures: Pictures, batch_size: int) -> int:
    """How many of them make about so many frames."""
    return max(1, batch_size // pictures.size[0]) if pictures.are_clips else batch_size


def measure(
    extractor: FeatureExtractor,
    pictures: Pictures,
    reference: Features,
    metrics: Sequence[str],
    batch_size: int,
    mesh: Mesh,
    name: str = "samples",
    shown: list[np.ndarray] | None = None,
) -> dict[str, float]:
    """The metrics of `pictures` by the name to print. The first batches of them are added to `shown`, 100 or so."""
    pictures = seen_by(extractor, pictures)
    batches = with_bar(pictures, _at_once(pictures, batch_size), name, shown)
    features = extract(extractor, batches, source=pictures.about, mesh=mesh, keep=KEEP)
    assert features.count == pictures.count, f"{features.count} pictures instead of {pictures.count}"
    with warnings.catch_warnings():  # `check_before` has said so
        warnings.simplefilter("ignore", FewSamplesWarning)
        warnings.filterwarnings("ignore", "pictures of .* are compared with a reference of")
        # Process 0 alone may have the reference.
        return from_primary(lambda: {name: float(n) for name, n in compute(features, reference, metrics).items()})


def reconstructed(pictures: Pictures, decoder: Decoder, errors: list[float] | None = None) -> Pictures:
    """What the autoencoder of `decoder` makes of the pictures: encoded and decoded again.

    errors: each picture's PSNR in dB is added to it, the peak being 255, as the pictures are gone through.
    """

    def batches(batch_size: int) -> Iterator[UInt8[np.ndarray, "_b ..."]]:
        for batch in pictures.batches(batch_size):
            again = decoder(decoder.encode(to_float(batch)))
            if errors is not None:
                squares = np.square(batch.astype(np.float32) - again).mean(tuple(range(1, batch.ndim)))
                errors.extend((10 * np.log10(255**2 / np.maximum(squares, 1e-10))).tolist())
            yield again

    return dataclasses.replace(pictures, batches=batches, shares=None)


def scored(pictures: Pictures, clip: Clip, prompts: Prompts, cosines: list[float]) -> Pictures:
    """The same pictures; how well each fits its prompt is added to `cosines` as they are gone through."""

    def batches(batch_size: int) -> Iterator[UInt8[np.ndarray, "_b h w 3"]]:
        count = 0
        for batch in pictures.batches(batch_size):
            numbers = np.arange(count, count + len(batch))
            cosines.extend(np.asarray(clip.cosines(batch, prompts.of(numbers))).tolist())
            count += len(batch)
            yield batch

    return dataclasses.replace(pictures, batches=batches, shares=None)


def reconstruction_floor(
    path: Path,
    extractor: FeatureExtractor,
    pictures: Pictures,
    reference: Features,
    metrics: Sequence[str],
    decoder: Decoder,
    batch_size: int,
    mesh: Mesh,
) -> dict[str, float]:
    """The metrics of the autoencoder's own reconstructions of `pictures`, and PSNR in dB, the mean over the pictures.

    No sample that this autoencoder decodes can be expected to do better, and as many of them as there are pictures
    compare with it. The numbers are kept in `path`, JSON, and used again for the same pictures, networks and metrics.
    """
    assert decoder.autoencoder is not None
    about = {
        "pictures": dict(pictures.about),
        "count": pictures.count,
        "reference": {"count": reference.count, **reference.source},
        "network": [extractor.name, extractor.fingerprint],
        "autoencoder": [decoder.autoencoder.name, decoder.autoencoder.fingerprint],
        "metrics": list(metrics),
    }

    def look() -> dict[str, float] | None:
        try:
            known = json.loads(path.read_text())
            return {name: float(value) for name, value in known["values"].items()} if known["about"] == about else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # not there, or not ours: it is made anew

    if (known := from_primary(look)) is not None:
        return known
    errors: list[float] = []
    again = reconstructed(pictures, decoder, errors)
    values = measure(extractor, again, reference, metrics, batch_size, mesh, "reconstructions")
    values |= {PSNR: float(np.mean(errors))}
    if processes.index() == 0:
        write_atomically(path, json.dumps({"about": about, "values": values}, indent=1).encode())
    return values


def floor_path(features: Path, decoder: Decoder, count: int) -> Path:
    """Where `reconstruction_floor` keeps its numbers: beside the features of the data set."""
    assert decoder.autoencoder is not None
    return features.with_name(f"{features.stem}-floor-{decoder.autoencoder.fingerprint[:12]}-{count}.json")


def with_bar(pictures: Pictures, batch_size: int, name: str, shown: list[np.ndarray] | None = None) -> Iterator[Any]:
    """The batches, or this process's share of each where a set is read by shares, with a progress bar."""
    interval = 0.1 if sys.stderr.isatty() else 30  # a log file wants few lines
    hidden = processes.index() > 0
    batches: Iterator[Any] = (
        pictures.batches(batch_size)
        if shown is not None or pictures.shares is None
        else map(Share._make, pictures.shares(batch_size))
    )
    with tqdm(
        total=pictures.count, desc=name, unit="picture", leave=False, mininterval=interval, disable=hidden
    ) as bar:
        for batch in batches:
            if shown is not None and sum(map(len, shown)) < 100:
                shown.append(batch)
            yield batch
            bar.update(batch.total if isinstance(batch, Share) else len(batch))


class ScheduledEvaluation:
    """Evaluates a run's averaged weights as `config.eval` says, and knows which step was the best.

    Made before training starts: whatever is wrong with it shows then, and the features of the data set are extracted;
    with an autoencoder, those of its reconstructions, too.

    draw, decoder: how samples are drawn, and turned into pictures. encoder: of captions, for a model of text.
    """

    def __init__(self, config: RunConfig, workdir: AnyPath, draw: Sampler, decoder: Decoder, encoder: Any = None):
        cfg, mesh = config.eval, decoder.mesh
        self._cfg, self._draw, self._decoder, self._model, self._mesh = cfg, draw, decoder, config.model, mesh
        data = dataclasses.replace(config.data, split=cfg.split or config.data.split)
        source = primary_first(lambda: open_source(data))
        if encoder is not None:
            self._conditions = Prompts(encoder, captions_of(source, cfg.samples))
        else:
            labels, _ = labels_as_in(source, config.model, cfg.samples)
            self._conditions = labels_at(labels)
        pictures = of_dataset(data, source.info)
        self._extractor = load_network(cfg.network, cfg.weights)
        check_before(self._extractor, self._samples({}), pictures, cfg.metrics)
        path = Path(cfg.reference) if cfg.reference else features_path(source, pictures, self._extractor)
        self._reference = reference_features(path, self._extractor, pictures, cfg.batch_size, mesh)
        self._floor: dict[str, float] = {}
        if decoder.autoencoder is not None:
            originals = of_dataset(data, source.info, limit=cfg.samples)
            kept = floor_path(path, decoder, originals.count)
            self._floor = reconstruction_floor(
                kept, self._extractor, originals, self._reference, cfg.metrics, decoder, cfg.batch_size, mesh
            )
        self._metric = metric_label(cfg.metrics[0], self._extractor.name)
        self._workdir = workdir

    def resume(self, start: int) -> int | None:
        """Goes on from step `start`. Returns the step of the best evaluation so far, if there is one."""
        lower = self._cfg.metrics[0] in LOWER_IS_BETTER
        self._done = Evaluations(self._workdir, self._metric, lower, start)
        return self._done.best

    def due(self, step: int) -> bool:
        """Whether `step` is one to evaluate and was not yet."""
        return step > 0 and step % self._cfg.every == 0 and step not in self._done

    def run(self, step: int, params: Params, logger: MetricLogger) -> int | None:
        """Draws, measures and logs as eval/NAME; returns the step of the best evaluation so far.

        Beside it, as eval/reconstruction-NAME, what the autoencoder's reconstructions of the data set have.

        Samples that are not finite don't stop the training: the number is null, and never the best.
        """
        try:
            values = measure(
                self._extractor,
                self._samples(params),
                self._reference,
                self._cfg.metrics,
                self._cfg.batch_size,
                self._mesh,
                f"samples of step {step}",
            )
        except FloatingPointError as error:
            logger.print(f"step {step}: {error}")
            values = {self._metric: math.nan}
        self._done.add(step, values, write=processes.index() == 0)
        logger.pause()
        floor = {f"reconstruction-{name}": value for name, value in self._floor.items()}
        logger.write(step, {f"eval/{name}": value for name, value in (values | floor).items()})
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.print(f"step {step}: {numbers}{', the best so far' if self._done.best == step else ''}")
        return self._done.best

    def _samples(self, params: Params) -> Pictures:
        return drawn(self._draw, params, self._decoder, self._model, self._cfg.samples, self._conditions, {})


def _promised(extractor: FeatureExtractor, pictures: Pictures) -> Features:
    """What the features of `pictures` will look like, all zeros that take no memory."""
    outputs = jax.eval_shape(extractor, jax.ShapeDtypeStruct((1, *pictures.size, 3), np.uint8))
    zeros = {
        name: np.broadcast_to(np.float32(0), (min(pictures.count, KEEP), output.shape[1]))
        for name, output in outputs.items()
    }
    gaussians = {
        name: Gaussian(np.broadcast_to(0.0, d), np.broadcast_to(0.0, (d, d)), pictures.count)
        for name, d in ((name, outputs[name].shape[1]) for name in GAUSSIAN if name in outputs)
    }
    rows = {name: zeros[name] for name in KEPT if name in outputs}
    return Features(
        extractor.name, extractor.fingerprint, pictures.count, pictures.size, pictures.about, gaussians, rows
    )

"""Measures samples against a data set: `python -m zigma_jax.evaluate --source=runs/quickstart [--num=10000] …`.

`--source` is a model, from which `--num` samples are drawn as `zigma_jax.sample` draws them and with its flags
(--method, --steps, --guidance, --labels, --seed, --weights, --checkpoint, --autoencoder; docs/sampling.md), or
pictures: what `zigma_jax.sample` wrote, a directory of pictures, or an .npz with `samples`. They are compared with the
data set that the run was trained on, or with `--dataset=NAME` or `--folder=DIR`, by the features of `--network`;
docs/evaluation.md says what the numbers are. The data set's features are kept beside its records, or in
`--reference=FILE.npz`, and used again.

Prints a table and writes to `--output`: evaluation.json, samples.png and reference.png.

Of a model of clips, or of clips that it drew, the network is one of videos (--network=i3d for FVD), 2,048 clips are
compared, and beside the distance stand that of single frames and the motion, of the samples and of copies of real clips
that stand still or are out of order; docs/video.md.

`--adherence` measures something else: whether samples show the class or the attributes that they were drawn for.
"""

import dataclasses
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import app, flags
from jax.sharding import Mesh

from zigma_jax import processes
from zigma_jax.data.config import DataConfig, LatentConfig
from zigma_jax.data.pictures.sets import Pictures, Size, of_dataset, of_files
from zigma_jax.data.pipeline import open_source
from zigma_jax.data.sources import Source
from zigma_jax.drawing import DEFINE_drawing, Drawing
from zigma_jax.errors import ConfigError
from zigma_jax.files import AnyPath, as_path, make_directory, write_atomically
from zigma_jax.metrics import Features
from zigma_jax.metrics.reference_file import known_features
from zigma_jax.networks import Extractor, load_network
from zigma_jax.networks.clip import Clip, load_clip
from zigma_jax.processes import primary_first
from zigma_jax.programs import DEFINE_processes, exit_with_errors, parse_flags, set_cpu_devices
from zigma_jax.training import adherence, clip_evaluation
from zigma_jax.training.config import EvalConfig, RunConfig
from zigma_jax.training.decoding import Decoder, latent_shape, open_autoencoder
from zigma_jax.training.evaluation import (
    CLIP_SCORE,
    check_before,
    drawn,
    features_path,
    floor_path,
    labels_as_in,
    labels_at,
    measure,
    reconstruction_floor,
    reference_features,
    scored,
    with_bar,
)
from zigma_jax.training.preview import make_grid, save_animation, save_png
from zigma_jax.training.prompts import Conditions, Prompts, captions_of
from zigma_jax.training.sample_directory import check_directory, draws_videos, has_manifest, pictures_of
from zigma_jax.training.sampling import choose_labels
from zigma_jax.training.sharding import make_mesh
from zigma_jax.training.weights import is_model

_SOURCE = flags.DEFINE_string(
    "source", None, "A model (workdir, .pt, .safetensors, …), a directory of pictures, an .npz."
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory for the results; by default evaluation/ beside the source.")
_NUM = flags.DEFINE_integer(
    "num", None, "How many samples; by default as eval.samples, or all pictures.", lower_bound=2
)
_BATCH = flags.DEFINE_integer("batch", 64, "Pictures at a time.", lower_bound=1)
_NETWORK = flags.DEFINE_string("network", None, "Where features come from: docs/networks.md. By default effnet.")
_FILE = flags.DEFINE_string("network_weights", None, "The file of the network's weights; effnet has a package.")
_METRICS = flags.DEFINE_list("metrics", None, "What to compute: docs/evaluation.md. By default all that can be.")

_DATASET = flags.DEFINE_string("dataset", None, "The data set to compare with, as data.name; by default the run's.")
_FOLDER = flags.DEFINE_string("folder", None, "A directory of pictures to compare with, as data.folder.")
_SPLIT = flags.DEFINE_string("split", None, "Of the data set; by default the run's, or train.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where data sets lie, as data.data_dir.")
_STRIDE = flags.DEFINE_integer("stride", None, "Of the data set's clips, as data.stride.", lower_bound=1)
_REFERENCE = flags.DEFINE_string("reference", None, "An .npz with the features of the data set; made if not there.")
_CLIP = flags.DEFINE_string(
    "clip", None, "A CLIP with both towers, a directory or hf://OWNER/REPO: how well samples fit their prompts."
)
_HELD_OUT = flags.DEFINE_string("held_out", None, "Also measure this split: what a perfect model would score.")
_ADHERENCE = flags.DEFINE_bool("adherence", False, "Measure instead whether samples show what was asked for.")
_SIZE = flags.DEFINE_integer("image_size", None, "Crop and resize the pictures of the source to it.", lower_bound=1)

_LOAD = DEFINE_drawing()
_JOIN = DEFINE_processes()

RECONSTRUCTED = "autoencoder"  # the column of its reconstructions of the data set
SHOWN, SHOWN_CLIPS = 100, 36  # pictures or clips in a grid
SHOWN_AT_SCALE = 20  # of adherence


def main(argv: list[str]) -> None:
    with exit_with_errors(argv):
        if _SOURCE.value is None:
            raise ConfigError("--source is missing; for example --source=runs/quickstart")
        set_cpu_devices()
        _JOIN()
        (measure_adherence if _ADHERENCE.value else evaluate)(as_path(_SOURCE.value))


def evaluate(source: AnyPath) -> None:
    """Measures what the flags ask for. Whatever can be wrong with them is found before the long work."""
    # ---- the samples, the network, the data set
    output = as_path(_OUTPUT.value) if _OUTPUT.value else _beside(source) / "evaluation"
    check_directory(output)
    mesh = make_mesh()
    measured = _load(source, mesh) if is_model(source) else _pictures(source)
    run = measured if isinstance(measured, Drawing) else None
    decoder = measured.decoder if isinstance(measured, Drawing) else _reconstructor(measured, mesh)
    size = measured.decoder.picture_shape[:-1] if isinstance(measured, Drawing) else measured.size
    config = run.config if run else None
    defaults = config.eval if config else EvalConfig()
    of_clips = len(size) == 3
    extractor = _load_network(defaults, of_clips)
    elsewhere = bool(_DATASET.value or _FOLDER.value or _SPLIT.value)
    path = _REFERENCE.value or (None if elsewhere else defaults.reference)
    known = known_features(path, extractor) if path else None
    # A file of another program does not say what it is of: it is taken as it is.
    foreign = known is not None and not known.fingerprint
    if foreign and elsewhere:
        raise ConfigError(f"--reference={path} does not say what it is of: give it, or a data set, but not both")
    data = None if foreign else _data_config(config, size)
    dataset = primary_first(lambda: open_source(data)) if data else None
    limit = clip_evaluation.CLIPS if of_clips else None
    originals = of_dataset(data, dataset.info, limit) if data and dataset else None
    against = originals or known
    if against is None:
        raise ConfigError("what to compare with? Give --dataset, --folder, or --reference with a file that is there")
    conditions = None
    if isinstance(measured, Drawing):
        count = _NUM.value or (min(defaults.samples, clip_evaluation.CLIPS) if of_clips else defaults.samples)
        measured, conditions = _samples(measured, dataset, count)
        if of_clips:
            make_directory(output)
            measured = clip_evaluation.on_disk(measured, output)
    clip = None if of_clips else _load_clip(conditions)
    sets = {"samples": measured}
    if _HELD_OUT.value:
        sets[_HELD_OUT.value] = _held_out(data, measured.count)
    floor = None  # what no sample can be expected to pass
    if data and dataset and decoder and decoder.autoencoder:
        floor = of_dataset(data, dataset.info, limit=measured.count)
    if of_clips and data and dataset:
        sets |= clip_evaluation.spoilt(of_dataset(data, dataset.info, min(measured.count, clip_evaluation.CLIPS)))
    metrics, warned = _check(extractor, sets if floor is None else sets | {RECONSTRUCTED: floor}, against)

    # ---- the work
    reference = known
    if dataset and originals:
        path = path or features_path(dataset, originals, extractor)
        reference = reference_features(Path(path), extractor, originals, _BATCH.value, mesh)
    assert reference is not None
    shown: list[np.ndarray] = []
    cosines: list[float] = []
    if clip is not None and isinstance(conditions, Prompts):
        sets["samples"] = scored(sets["samples"], clip, conditions, cosines)
    tables = {
        name: measure(
            extractor, pictures, reference, metrics, _BATCH.value, mesh, name, shown if name == "samples" else None
        )
        for name, pictures in sets.items()
    }
    if clip is not None:
        tables["samples"][CLIP_SCORE] = clip.score(cosines)
    if floor is not None and decoder is not None and path:
        kept = floor_path(Path(path), decoder, floor.count)
        tables[RECONSTRUCTED] = reconstruction_floor(
            kept, extractor, floor, reference, metrics, decoder, _BATCH.value, mesh
        )
        sets[RECONSTRUCTED] = floor

    if of_clips and dataset and originals:
        more = (
            clip_evaluation.of_single_frames(sets, originals, dataset, _BATCH.value, mesh, extractor),
            clip_evaluation.of_motion(sets, originals, _BATCH.value),
        )
        for name in sets:
            tables[name] |= more[0][name] | more[1][name]

    # ---- what came out
    if processes.index() > 0:
        return
    results = {name: {"count": s.count, **s.about, "metrics": tables[name]} for name, s in sets.items()}
    if decoder and decoder.autoencoder:
        network = {"name": decoder.autoencoder.name, "fingerprint": decoder.autoencoder.fingerprint}
        results[RECONSTRUCTED] = network | results.get(RECONSTRUCTED, {})
    results |= {
        "reference": {"count": reference.count, **reference.source},
        "network": {"name": extractor.name, "sha256": extractor.fingerprint},
        "sample": dataclasses.asdict(run.sample) if run else None,
        "warnings": warned,
    }
    write_atomically(output / "evaluation.json", json.dumps(results, indent=1).encode())
    grids = {"samples": np.concatenate(shown)[:SHOWN]} | ({"reference": originals.first(SHOWN)} if originals else {})
    for name, pictures in grids.items():
        if pictures.ndim == 5:
            save_animation(output / f"{name}.webp", pictures[:SHOWN_CLIPS])
        else:
            save_png(output / f"{name}.png", make_grid(pictures))
    print_table(sets, tables, reference)
    print(f"\n{output}/evaluation.json; pictures beside it")


def measure_adherence(source: AnyPath) -> None:
    """The share of samples that show what was asked for, at several scales of guidance."""
    output = as_path(_OUTPUT.value) if _OUTPUT.value else _beside(source) / "evaluation"
    check_directory(output)
    if not is_model(source):
        raise ConfigError(f"--adherence: {source} is no model; of pictures it is not known what was asked for")
    drawing, count = _load(source, make_mesh()), _NUM.value or adherence.SAMPLES
    model = drawing.model.cfg
    if not (model.num_classes or model.context_size):
        raise ConfigError(f"--adherence: {source} is a model without classes or text, and can be asked for nothing")
    if flags.FLAGS["prompts"].value:
        raise ConfigError("--adherence: draws for captions of held-out pictures, so that --prompts has no effect")
    if len(model.sample_shape) == 4:
        raise ConfigError("--adherence: reads pictures, and the model draws videos")
    if (data := _data_config(drawing.config, drawing.decoder.size)) is None:
        raise ConfigError("--adherence: of which data set are the classes or captions? Give --dataset")
    reader, held_out = adherence.open_reader(data)
    if drawing.prompts:
        captions, wanted = adherence.asked_of_text(held_out, count)
        drawing = drawing.instead(captions)
        conditions, words = drawing.conditions(), {"prompts": "held-out captions, one a picture"}
    else:
        labels = choose_labels(model, np.arange(count), drawing.labels)
        assert labels is not None
        conditions, wanted = labels_at(labels), adherence.asked_of_classes(labels, model.num_classes)
        words = {"labels": ",".join(map(str, drawing.labels)) or "every class in turn"}
    shares, shown = {}, []
    for scale in adherence.SCALES if model.null_class or drawing.prompts else (1.0,):
        at_scale = dataclasses.replace(drawing, sample=dataclasses.replace(drawing.sample, guidance=scale))
        pictures = drawn(at_scale.sampler(), drawing.params(), drawing.decoder, model, count, conditions, drawing.about)
        images = np.concatenate(list(with_bar(pictures, _BATCH.value, f"samples at guidance {scale:g}")))
        shares[scale] = reader.shares(images, wanted)
        shown.append(images[:SHOWN_AT_SCALE])
    rows = adherence.table(reader, shares, wanted)
    if processes.index() > 0:
        return
    about = {"count": count, **drawing.about, **words, "probe": dict(reader.about), "attributes": rows}
    write_atomically(output / "evaluation.json", json.dumps({"adherence": about}, indent=1).encode())
    save_png(output / "adherence.png", make_grid(np.concatenate(shown), columns=SHOWN_AT_SCALE))
    print(f"samples {count:,}: {_words({**drawing.about, **words})}")
    print(f"probe: {_words(reader.about)}\n")
    adherence.print_table(rows)
    print(f"\n{output}/evaluation.json; {output}/adherence.png has a row of samples for each scale of guidance")


def _load(source: AnyPath, mesh: Mesh) -> Drawing:
    if _SIZE.value:
        raise ConfigError(f"--image_size={_SIZE.value}: is for pictures; a model draws at a size of its own")
    captions = [""] if _DATASET.value or _FOLDER.value else []  # until those of the data set take their place
    drawing = _LOAD(source, mesh, captions)
    return drawing


def _pictures(source: AnyPath) -> Pictures:
    """What a directory's manifest names, or whatever pictures there are."""
    with_videos = (source / "samples.npz").is_file() and draws_videos(source)
    size = (_SIZE.value, _SIZE.value) if _SIZE.value else None
    if has_manifest(source) and not with_videos:
        return pictures_of(source, size, _NUM.value)
    if not isinstance(source, Path):
        raise ConfigError(f"--source={source}: of a bucket, only pictures that zigma_jax.sample drew can be measured")
    return of_files(source, size, _NUM.value)


def _reconstructor(pictures: Pictures, mesh: Mesh) -> Decoder | None:
    """By --autoencoder, to say what it makes of pictures like these; None without."""
    place = flags.FLAGS["autoencoder"].value
    if not place:
        return None
    shape = (*pictures.size[:-2], *latent_shape(place, (pictures.size[-2], pictures.size[-1])))
    return Decoder(shape, mesh, open_autoencoder(LatentConfig(autoencoder=place), shape))


def _samples(drawing: Drawing, dataset: Source | None, count: int) -> tuple[Pictures, Conditions]:
    """What is drawn, and what for: captions or labels as in the data set, unless flags say otherwise."""
    model, wanted = drawing.model.cfg, drawing.labels
    if drawing.prompts and (flags.FLAGS["prompts"].value or dataset is None):
        conditions, about = drawing.prompts, {"prompts": f"{len(drawing.prompts.texts):,}"}
    elif drawing.prompts and dataset:
        drawing = drawing.instead(captions_of(dataset, count))
        conditions, about = drawing.conditions(), {"prompts": "captions, one a picture"}
    elif wanted or dataset is None:
        labels = choose_labels(model, np.arange(count), wanted)
        words = ",".join(map(str, wanted)) or ("none" if labels is None else "every class in turn")
        conditions, about = labels_at(labels), {"labels": words}
    else:
        labels, words = labels_as_in(dataset, model, count)
        conditions, about = labels_at(labels), {"labels": words}
    about = {**drawing.about, **about}
    draw = drawing.sampler()
    return drawn(draw, drawing.params(), drawing.decoder, model, count, conditions, about), conditions


def _load_clip(conditions: Conditions | None) -> Clip | None:
    if _CLIP.value is None:
        return None
    if not isinstance(conditions, Prompts):
        raise ConfigError(f"--clip={_CLIP.value}: scores samples of prompts, and --source is no model of text")
    return load_clip(_CLIP.value, flag="--clip")


def _load_network(defaults: EvalConfig, of_clips: bool) -> Extractor:
    usual = clip_evaluation.NETWORK if of_clips and defaults.network == EvalConfig().network else defaults.network
    name = _NETWORK.value or usual
    return load_network(name, _FILE.value or (defaults.weights if name == defaults.network else None))


def _data_config(config: RunConfig | None, size: Size) -> DataConfig | None:
    """The data set to compare with, by the flags or the run's configuration; None if neither names one."""
    if _DATASET.value and _FOLDER.value:
        raise ConfigError("--dataset and --folder: give one of them")
    pixels = (size[-2], size[-1])
    if _DATASET.value or _FOLDER.value:
        name, split = _DATASET.value or "folder", _SPLIT.value or "train"
        wanted = DataConfig(name, _DATA_DIR.value, split, image_size=pixels, folder=_FOLDER.value)
        if len(size) == 2:
            return wanted
        of_run = config.data.stride if config else 1
        return dataclasses.replace(wanted, frames=size[0], stride=_STRIDE.value or of_run)
    if config is None:
        return None
    split = _SPLIT.value or config.eval.split or config.data.split
    return dataclasses.replace(
        config.data, split=split, data_dir=_DATA_DIR.value or config.data.data_dir, image_size=pixels
    )


def _held_out(data: DataConfig | None, count: int) -> Pictures:
    if data is None:
        raise ConfigError(f"--held_out={_HELD_OUT.value}: of which data set? Give --dataset or --folder")
    data = dataclasses.replace(data, split=_HELD_OUT.value)
    return of_dataset(data, open_source(data).info, limit=count)


def _check(
    extractor: Extractor, sets: Mapping[str, Pictures], reference: Pictures | Features
) -> tuple[list[str], list[str]]:
    """The metrics to compute, of every set, and warnings, which are printed."""
    metrics: list[str] | None = _METRICS.value
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for pictures in sets.values():
            metrics = check_before(extractor, pictures, reference, metrics)
    messages = list(dict.fromkeys(str(warning.message) for warning in caught))
    for message in messages:
        print(f"warning: {message}", file=sys.stderr)
    return metrics or [], messages


def print_table(sets: Mapping[str, Pictures], tables: Mapping[str, Mapping[str, float]], reference: Features) -> None:
    """What was compared, and numbers by name with a column for each set."""
    for name, pictures in sets.items():
        print(f"{name:10} {pictures.count:>7,}  {_words(pictures.about)}")
    count = "?" if reference.count is None else f"{reference.count:,}"
    print(f"{'reference':10} {count:>7}  {_words(reference.source)}\n")
    print(" " * 24 + "".join(f"{name:>12}" for name in sets))
    for metric in dict.fromkeys(metric for table in tables.values() for metric in table):
        numbers = (tables[name].get(metric) for name in sets)
        print(f"{metric:24}" + "".join(f"{'':12}" if n is None else f"{n:12.5g}" for n in numbers))


def _words(about: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in about.items())


def _beside(source: AnyPath) -> AnyPath:
    """The directory for results: a model's own, and the one above pictures, among which they do not belong."""
    return source if source.is_dir() and is_model(source) else source.parent


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

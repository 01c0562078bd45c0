"""Draws samples: `python -m zigma_jax.sample --source=runs/quickstart --num=64 [--labels=3,5] [--guidance=3] …`.

`--source` is a workdir of `zigma_jax.train`, an official .pt checkpoint, or a .safetensors file. Every field of
`sample.*` in a configuration is a flag by its name (--method, --steps, --shift, --guidance, …; docs/sampling.md), by
default as the run was configured. Sample i of a seed is the same picture whatever the batch size and the number of
devices. Latents become pictures by the run's autoencoder, or by `--autoencoder`.

Writes to `--output`, as the samples are drawn: NNNNNN.png and manifest.json, which counts what is there; at the end
grid.png, and samples.npz with `samples` (n, h, w, 3) uint8 and, for a model with classes, `labels` (n,); for a model
of text, prompts.jsonl says what each one was drawn for. Videos are NNNNNN.mp4 (or .webp where PyAV is not installed),
`samples` is (n, f, h, w, 3), and grid.mp4 plays beside grid.png, which has a row of frames for each video. The same
command again goes on where an interrupted one was, and one with other settings is refused (`--overwrite` removes the
samples that are there). Ctrl-C stops after the batch at hand.

`--encode=PICTURES`, a directory of them or an .npz with `samples` and `labels`, goes the other way, from each picture
to the noise that it would be drawn from, and writes noise.npz with `noise` and `labels`.

Exit codes: 0 done; 1 an error, named on the last line; 128 + the signal's number when Ctrl-C (130) or SIGTERM (143)
stopped it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from jax.sharding import Mesh
from tqdm import tqdm

from zigma_jax import processes
from zigma_jax.data.pictures.sets import read_pictures
from zigma_jax.drawing import DEFINE_drawing, Drawing
from zigma_jax.errors import ConfigError
from zigma_jax.files import AnyPath, as_path
from zigma_jax.programs import DEFINE_processes, exit_with_errors, parse_flags, set_cpu_devices
from zigma_jax.training.prompts import Conditions
from zigma_jax.training.sample_directory import SampleDirectory, check_directory
from zigma_jax.training.sampling import Condition, batches, choose_labels, on_host
from zigma_jax.training.sharding import make_mesh
from zigma_jax.training.stops import Stops
from zigma_jax.training.workdir import owned

_SOURCE = flags.DEFINE_string("source", None, "Workdir, .pt, .safetensors or directory of orbax parameters.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory for the samples; by default samples/ beside the source.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Remove the samples of other settings that are in it.")
_NUM = flags.DEFINE_integer("num", 16, "How many samples.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 64, "Samples at a time.", lower_bound=1)
_LATENTS = flags.DEFINE_bool("latents", False, "Also keep the numbers that were decoded: latents.npy, float32.")
_FPS = flags.DEFINE_float("fps", 8.0, "Of videos: frames a second.", lower_bound=0.1, upper_bound=1000.0)
_FRAMES = flags.DEFINE_bool("frames", False, "Of videos: also write every frame, as NNNNNN-FFF.png.")
_ENCODE = flags.DEFINE_string(
    "encode", None, "Pictures to turn into noise: a directory of them, or an .npz with `samples`."
)
_LOAD = DEFINE_drawing()
_JOIN = DEFINE_processes()

Work = Callable[[np.ndarray, int, Condition], tuple[np.ndarray | None, dict[str, np.ndarray]]]


def main(argv: list[str]) -> None:
    with exit_with_errors(argv):
        if _SOURCE.value is None:
            raise ConfigError("--source is missing; for example --source=runs/quickstart")
        set_cpu_devices()
        _JOIN()
        sample(as_path(_SOURCE.value))


def sample(source: AnyPath) -> None:
    """Draws, or encodes, what the flags ask for with the model in `source`."""
    output = as_path(_OUTPUT.value) if _OUTPUT.value else _beside(source) / ("noise" if _ENCODE.value else "samples")
    check_directory(output)
    drawing = _LOAD(source, make_mesh())
    decoder = drawing.decoder
    if _LATENTS.value and (decoder.autoencoder is None or _ENCODE.value):
        raise ConfigError("--latents: are what a model of latents draws, before they are decoded")
    images, labels = _pictures(drawing) if _ENCODE.value else (None, drawing.labels)
    num = _NUM.value if images is None else len(images)
    shape = drawing.model.cfg.sample_shape
    arrays, kept = {}, ()
    if images is not None:
        arrays = {"noise": (shape, np.float32)}
    elif len(shape) == 4:
        arrays = {"samples": (decoder.picture_shape, np.uint8)}
    if _LATENTS.value:
        arrays, kept = arrays | {"latents": (shape, np.float32)}, ("latents",)
    settings = drawing.settings() | {"encoded": _ENCODE.value, "labels": labels}

    pictures = decoder.picture_shape if images is None else None
    if _FRAMES.value and len(shape) == 3:
        raise ConfigError("--frames: is for a model of videos")
    of_videos = (_FPS.value, _FRAMES.value)
    with (
        owned(output),
        SampleDirectory(
            output, num, settings, drawing.about, pictures, arrays, kept, _OVERWRITE.value, *of_videos
        ) as directory,
    ):
        if directory.finished:
            print(f"{output}: holds these {num} samples already")
            return
        work = _drawing(drawing) if images is None else _encoding(drawing, images)
        if _fill(directory, work, drawing.conditions(labels), drawing.sample.method, decoder.mesh):
            everyone = np.arange(num)
            directory.finish(choose_labels(drawing.model.cfg, everyone, labels), _words(drawing, everyone))
    words = "noise of pictures" if images is not None else "pictures, their grid.png and samples.npz"
    print(f"{num} samples in {output}: {words}")


def _fill(directory: SampleDirectory, work: Work, conditions: Conditions, name: str, mesh: Mesh) -> bool:
    """Draws and writes what is not there yet, and returns True once all is.

    The first signal to stop ends the program after the batch at hand.
    """
    size = min(_BATCH.value, directory.num)
    interval = 0.1 if sys.stderr.isatty() else 30  # a log file wants few lines
    bar = tqdm(
        total=directory.num,
        initial=directory.count,
        unit="sample",
        desc=name,
        mininterval=interval,
        disable=processes.index() > 0,
    )
    with Stops(exit_at_second=True) as stops, bar:
        stops.on(mesh)
        for numbers, count in batches(directory.num, size, directory.count):
            pictures, arrays = work(numbers, count, conditions(numbers))
            directory.add(pictures, **arrays)
            bar.update(count)
            if stops.agreed() and directory.count < directory.num:
                break
        else:
            return True
    assert stops.received is not None
    print(
        f"{stops.received.name}: the first {directory.count} of {directory.num} samples are in {directory.path}; "
        "the same command goes on from them"
    )
    sys.exit(128 + stops.received)


def _drawing(drawing: Drawing) -> Work:
    run, params = drawing.sampler(), drawing.params()

    def draw(numbers, count, labels):
        samples = run(params, numbers, labels)[:count]
        pictures = drawing.decoder.checked(samples, int(numbers[0]))
        arrays = {"latents": on_host(samples)} if _LATENTS.value else {}
        return (pictures, arrays | {"samples": pictures}) if pictures.ndim == 5 else (pictures, arrays)

    return draw


def _encoding(drawing: Drawing, images: np.ndarray) -> Work:
    run, params = drawing.encoder(), drawing.params()

    def encode(numbers, count, labels):
        samples = drawing.decoder.encode(images[numbers % len(images)])
        return None, {"noise": on_host(run(params, samples, labels))[:count]}

    return encode


def _words(drawing: Drawing, numbers: np.ndarray) -> list[dict[str, Any]] | None:
    """Of each sample what prompts.jsonl says; None without prompts."""
    if drawing.prompts is None:
        return None
    common = {"negative": drawing.prompts.negative, "guidance": drawing.sample.guidance, "seed": drawing.seed}
    return [{"prompt": prompt} | common for prompt in drawing.prompts.of(numbers)]


def _pictures(drawing: Drawing) -> tuple[np.ndarray, list[int]]:
    """The pictures to encode, and the label of each, or those to use in turn."""
    drawing.encoder()  # refuses a method that has no way back
    images, known = read_pictures(Path(_ENCODE.value or ""), drawing.decoder.picture_shape)
    if known is None or drawing.labels or not drawing.model.cfg.num_classes:
        return images, drawing.labels
    labels = known.tolist()
    choose_labels(drawing.model.cfg, np.arange(len(labels)), labels)
    return images, labels


def _beside(source: AnyPath) -> AnyPath:
    return source if source.is_dir() else source.parent


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

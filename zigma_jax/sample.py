"""Draws samples: `python -m zigma_jax.sample --source=runs/quickstart --num=64 [--labels=3,5] [--guidance=3] …`.

`--source` is a workdir of `zigma_jax.train`, an official .pt checkpoint, or a .safetensors file. Every field of
`sample.*` in a configuration is a flag by its name (--method, --steps, --shift, --guidance, …; docs/sampling.md), by
default as the run was configured. Sample i of a seed is the same picture whatever the batch size and the number of
devices. Writes to `--output`: NNNNNN.png, grid.png, and samples.npz with `samples` (n, h, w, c) float32 in [-1, 1]
and, for a model with classes, `labels` (n,).

`--encode=PICTURES`, a directory of them or an .npz with `samples` and `labels`, goes the other way, from each picture
to the noise that it would be drawn from, and writes noise.npz with `noise` and `labels`.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from flax import nnx
from tqdm import tqdm

from zigma_jax.data.read_pictures import read_pictures
from zigma_jax.interpolant import Interpolant
from zigma_jax.programs import DEFINE_sample, exit_with_errors, parse_flags, parse_labels
from zigma_jax.training.config import SampleConfig
from zigma_jax.training.preview import make_grid, save_animation, save_png, to_rgb
from zigma_jax.training.sampling import batches, choose_labels, make_encoder, make_sampler
from zigma_jax.training.sharding import make_mesh, replicated
from zigma_jax.training.weights import load_weights, params_of

_SOURCE = flags.DEFINE_string("source", None, "Workdir, .pt, .safetensors or directory of orbax parameters.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory for the pictures; by default samples/ beside the source.")
_NUM = flags.DEFINE_integer("num", 16, "How many samples.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 64, "Samples at a time.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
_LABELS = flags.DEFINE_list("labels", [], "Classes, used in turn; by default every class in turn.")
_WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Averaged or raw weights.")
_ENCODE = flags.DEFINE_string(
    "encode", None, "Pictures to turn into noise: a directory of them, or an .npz with `samples`."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "Of a workdir: latest, best, or a step.")
_CHANGED = DEFINE_sample()


def main(argv: list[str]) -> None:
    with exit_with_errors(argv):
        if _SOURCE.value is None:
            raise ValueError("--source is missing; for example --source=runs/quickstart")
        sample(Path(_SOURCE.value))


def sample(source: Path) -> None:
    """Draws, or encodes, what the flags ask for with the model in `source`."""
    model, config = load_weights(source, _WEIGHTS.value, _CHECKPOINT.value)
    interpolant = config.interpolant if config else Interpolant()
    cfg = _CHANGED(config.sample if config else SampleConfig())
    if model.cfg.context_size:
        raise ValueError(f"{source}: the model is conditioned on text, which this program does not encode yet")
    wanted = parse_labels(_LABELS.value)

    mesh, images, num = make_mesh(), None, _NUM.value
    if _ENCODE.value:
        images, known = read_pictures(Path(_ENCODE.value), model.cfg.sample_shape)
        num = len(images)
        if known is not None and model.cfg.num_classes and not wanted:
            wanted = known.tolist()
        run = make_encoder(nnx.graphdef(model), interpolant, cfg, mesh)
    else:
        run = make_sampler(nnx.graphdef(model), interpolant, cfg, mesh, _SEED.value)

    params, results, labels = jax.device_put(params_of(model), replicated(mesh)), [], []
    with tqdm(total=num, unit="sample", desc=cfg.method) as bar:
        for indices, count in batches(num, min(_BATCH.value, num)):
            y = choose_labels(model.cfg, indices, wanted)
            values = indices if images is None else images[indices % num]
            results.append(run(params, values, y)[:count])
            labels += [] if y is None else [y[:count]]
            bar.update(count)
    if jax.process_index() == 0:
        output = Path(_OUTPUT.value) if _OUTPUT.value else _beside(source) / "samples"
        name = "samples" if images is None else "noise"
        _save_arrays(output, name, np.concatenate(results), np.concatenate(labels) if labels else None)
        if images is None:
            write_pictures(np.concatenate(results), output)


def _save_arrays(output: Path, name: str, values: np.ndarray, labels: np.ndarray | None) -> None:
    output.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: values} if labels is None else {name: values, "labels": labels}
    np.savez(output / f"{name}.npz", **arrays)
    print(f"{len(values)} samples in {output}/{name}.npz")


def write_pictures(samples: np.ndarray, output: Path) -> None:
    """Pictures, animations and the grid, where the channels are colours."""
    if samples.shape[-1] not in (1, 3):
        print(f"no pictures: samples of {samples.shape[-1]} channels are latents, which have to be decoded first")
        return
    for i, item in enumerate(samples):
        if item.ndim == 4:
            save_animation(output / f"{i:06d}.webp", item[None])
        else:
            save_png(output / f"{i:06d}.png", to_rgb(item))
    save_png(output / "grid.png", make_grid(samples[:256]))
    print(f"pictures beside it, the first {min(len(samples), 256)} of them in {output}/grid.png")


def _beside(source: Path) -> Path:
    return source if source.is_dir() else source.parent


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

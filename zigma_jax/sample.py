"""Draws samples: `python -m zigma_jax.sample --source=runs/quickstart --num=64 [--labels=3,5] [--seed=1] …`.

`--source` is a workdir of `zigma_jax.train`, an official .pt checkpoint, or a .safetensors file. Sample i of a seed is
the same picture whatever the batch size and the number of devices. Writes to `--output`: NNNNNN.png, grid.png, and
samples.npz with `samples` (n, h, w, c) float32 in [-1, 1] and, for a model with classes, `labels` (n,).
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from flax import nnx
from tqdm import tqdm

from zigma_jax.interpolant import Interpolant
from zigma_jax.programs import exit_with_errors, parse_flags
from zigma_jax.training.config import SampleConfig
from zigma_jax.training.preview import make_grid, save_animation, save_png, to_rgb
from zigma_jax.training.sampling import batches, choose_labels, make_sampler
from zigma_jax.training.sharding import make_mesh, replicated
from zigma_jax.training.weights import load_weights, params_of

_SOURCE = flags.DEFINE_string("source", None, "Workdir, .pt, .safetensors or directory of orbax parameters.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory for the pictures; by default samples/ beside the source.")
_NUM = flags.DEFINE_integer("num", 16, "How many samples.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 64, "Samples at a time.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
_LABELS = flags.DEFINE_list("labels", [], "Classes, used in turn; by default every class in turn.")
_WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Averaged or raw weights.")
_METHOD = flags.DEFINE_string("method", None, "euler, heun or dopri5; by default as the run was configured.")
_STEPS = flags.DEFINE_integer("steps", None, "Time points of euler and heun.")
_ATOL = flags.DEFINE_float("atol", None, "Absolute tolerance of dopri5.")
_RTOL = flags.DEFINE_float("rtol", None, "Relative tolerance of dopri5.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    with exit_with_errors():
        if _SOURCE.value is None:
            raise ValueError("--source is missing; for example --source=runs/quickstart")
        sample(Path(_SOURCE.value))


def sample(source: Path) -> None:
    """Draws what the flags ask for from `source`."""
    model, config = load_weights(source, _WEIGHTS.value)
    interpolant = config.interpolant if config else Interpolant()
    given = {"method": _METHOD.value, "steps": _STEPS.value, "atol": _ATOL.value, "rtol": _RTOL.value}
    given = {name: value for name, value in given.items() if value is not None}
    cfg = dataclasses.replace(config.sample if config else SampleConfig(), **given)
    if model.cfg.context_size:
        raise ValueError(f"{source}: the model is conditioned on text, which this program does not encode yet")
    try:
        wanted = [int(label) for label in _LABELS.value]
    except ValueError as error:
        raise ValueError(f"--labels={','.join(_LABELS.value)}: must be whole numbers") from error

    mesh = make_mesh()
    draw = make_sampler(nnx.graphdef(model), interpolant, cfg, mesh, _SEED.value)
    params, samples, labels = jax.device_put(params_of(model), replicated(mesh)), [], []
    with tqdm(total=_NUM.value, unit="sample", desc=cfg.method) as bar:
        for indices, count in batches(_NUM.value, min(_BATCH.value, _NUM.value)):
            y = choose_labels(model.cfg, indices, wanted)
            samples.append(draw(params, indices, y)[:count])
            labels += [] if y is None else [y[:count]]
            bar.update(count)
    if jax.process_index() == 0:
        output = Path(_OUTPUT.value) if _OUTPUT.value else _beside(source) / "samples"
        write(np.concatenate(samples), np.concatenate(labels) if labels else None, output)


def write(samples: np.ndarray, labels: np.ndarray | None, output: Path) -> None:
    """samples.npz always; pictures, animations and the grid where the channels are colours."""
    output.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"samples": samples} if labels is None else {"samples": samples, "labels": labels}
    np.savez(output / "samples.npz", **arrays)
    print(f"{len(samples)} samples in {output}/samples.npz")
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

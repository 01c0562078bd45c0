"""How far the quickstart's samples are from the faces it learned from: `python docs/quickstart_distance.py WORKDIR`.

Fréchet distance of colours averaged over 4 × 4 pixels (192 features, values in [-1, 1]), of 1,000 pictures each,
against the training set: other faces of the same set (the least there can be), samples, an untrained model's samples,
and noise.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from zigma_jax import ZigMa
from zigma_jax.data.pipeline import one_pass
from zigma_jax.metrics import Gaussian, frechet_distance
from zigma_jax.training.sampling import batches, choose_labels, make_sampler
from zigma_jax.training.sharding import make_mesh, replicated
from zigma_jax.training.weights import load_weights, params_of

COUNT, BATCH = 1000, 100


def statistics(pictures: np.ndarray) -> Gaussian:
    n, h, w, c = pictures.shape
    return Gaussian.of(pictures.reshape(n, h // 4, 4, w // 4, 4, c).mean((2, 4)).reshape(n, -1))


def main(workdir: Path) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    model, config = load_weights(workdir)
    assert config is not None
    mesh = make_mesh()
    draw = make_sampler(nnx.graphdef(model), config.interpolant, config.sample, mesh, seed=1)

    def samples(of: ZigMa) -> np.ndarray:
        params = jax.device_put(params_of(of), replicated(mesh))
        parts = [draw(params, i, choose_labels(model.cfg, i)) for i, _ in batches(COUNT, BATCH)]
        return np.concatenate(parts)

    first = np.concatenate([batch["image"] for batch in one_pass(config.data, batch_size=BATCH, limit=2 * COUNT)])
    real = statistics(first[:COUNT])
    noise = np.asarray(jax.random.normal(jax.random.key(0), (COUNT, *model.cfg.sample_shape)))
    for name, pictures in (
        ("other faces of the set", first[COUNT:]),
        ("samples", samples(model)),
        ("samples of an untrained model", samples(ZigMa(model.cfg, rngs=nnx.Rngs(0)))),
        ("noise", noise),
    ):
        print(f"{name:32s} {frechet_distance(real, statistics(pictures)):8.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A model whose blocks do something, which those of a new one do not; nothing is compiled for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zigma_jax.models.families import BackboneConfig, build

CENTRES = {"scale": 1.0, "D": 1.0, "A_log": 1.0, "dt_bias": -4.5}  # about those of a new model; 0 for all others


def random_model(cfg: BackboneConfig, scale: float = 0.3) -> Any:
    """Every parameter is drawn from N(centre, scale²), of kernels besides with the variance of a new model's."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(cfg, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        inputs = leaf.shape[-2] if "kernel" in names[-1] else np.inf
        values = rng.normal(CENTRES.get(names[-1], 0.0), (scale**2 + 1 / (3 * inputs)) ** 0.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, state))

"""A whole model whose tokens are divided among four devices: what one device computes, in a part of its memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.random_model import random_model
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.placement import on_mesh
from zigma_jax.training.sharding import make_mesh


def loss_of(model, mesh):
    graphdef, params = nnx.split(model)

    def loss(params, x, t):
        with on_mesh(mesh):
            return jnp.mean(
                nnx.merge(graphdef, params)(x, t) ** 2
            )  # nothing cancels, so that relative errors are small

    return jax.jit(jax.value_and_grad(loss)), params


def test_a_zigzag8_model_has_the_values_and_gradients_of_one_device():
    cfg = ZigMaConfig(sample_shape=(8, 8, 2), patch_size=1, hidden_size=8, depth=8, scan="zigzag8", state_size=4)
    model = random_model(cfg)
    x, t = jax.random.normal(jax.random.key(1), (2, *cfg.sample_shape)), jnp.array([0.2, 0.7])
    one, params = loss_of(model, None)
    four, _ = loss_of(model, make_mesh(seq=4))
    (a, of_one), (b, of_four) = one(params, x, t), four(params, x, t)
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-7)
    for p, q in zip(jax.tree.leaves(of_one), jax.tree.leaves(of_four), strict=True):
        np.testing.assert_allclose(q, p, rtol=2e-4, atol=2e-4 * float(jnp.abs(p).max()))


@pytest.mark.slow
def test_memory_falls_with_the_devices_that_share_the_tokens():
    """65,536 tokens, by XLA's account of the compiled gradient."""
    cfg = ZigMaConfig(sample_shape=(256, 256, 4), patch_size=1, hidden_size=64, depth=8, scan="zigzag8", remat="block")
    model = nnx.eval_shape(lambda: random_model(cfg))
    x, t = jax.ShapeDtypeStruct((1, *cfg.sample_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    memory = []
    for mesh in (None, make_mesh(seq=4, devices=jax.devices()[:4])):
        run, params = loss_of(model, mesh)
        analysis: Any = run.lower(params, x, t).compile().memory_analysis()
        memory.append(analysis.temp_size_in_bytes)
    assert memory[1] <= 0.3 * memory[0], memory

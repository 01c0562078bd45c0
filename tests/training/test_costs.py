"""The formula for a step's operations against XLA's count, and what is known of devices."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.families import build
from zigma_jax.models.sit import SiTConfig
from zigma_jax.training.costs import forward_flops, peak_flops, training_flops

COMMON: Any = {"sample_shape": (4, 4, 4), "hidden_size": 384, "depth": 2, "patch_size": 1, "remat": "none"}
# Loops count once in XLA's account, so that layers are unrolled, and the tokens are one chunk of the scan.
MODELS = {
    "zigma": ZigMaConfig(**COMMON, unroll=True, scan_implementation="xla", scan="zigzag2", num_classes=10),
    "text": ZigMaConfig(**COMMON, unroll=True, scan_implementation="xla", scan="zigzag2", context_size=256),
    "sit": SiTConfig(**COMMON | {"depth": 1}, num_heads=6),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_formula_is_xlas_count(name, monkeypatch):
    monkeypatch.setenv("ZIGMA_CPU_KERNELS", "off")  # XLA cannot count what a kernel does
    cfg = MODELS[name]
    graphdef, params = nnx.split(nnx.eval_shape(lambda: build(cfg, rngs=nnx.Rngs(0))))
    text = 12 if name == "text" else 0

    def loss(params, x, t, y):
        return jnp.sum(nnx.merge(graphdef, params)(x, t, y) ** 2)

    b = 8
    x = jax.ShapeDtypeStruct((b, *cfg.sample_shape), jnp.float32)
    t, labels = (jax.ShapeDtypeStruct((b,), dtype) for dtype in (jnp.float32, jnp.int32))
    y = jax.ShapeDtypeStruct((b, text, 256), jnp.float32) if text else labels
    lowered = jax.jit(jax.grad(loss)).lower(params, x, t, y)
    cost: Any = lowered.cost_analysis()
    counted = cost["flops"] / b
    shapes = nnx.to_pure_dict(params)
    assert training_flops(cfg, shapes, text) == pytest.approx(counted, rel=0.05)
    assert training_flops(cfg, shapes, text) == 3 * forward_flops(cfg, shapes, text)


def test_devices_are_known_by_the_beginning_of_their_names():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None

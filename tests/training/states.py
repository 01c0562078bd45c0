"""A state to save, and a run's checkpoints of it."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from zigma_jax.training.checkpoint import Checkpointer


@jax.tree_util.register_dataclass
@dataclass
class State:
    params: dict
    ema: dict
    moments: tuple
    step: jax.Array


def make_state(step=0, size=8):
    """Different at each step, in every leaf."""
    w = jnp.arange(16.0 * size).reshape(16, size) * 0.1 + step
    return State(
        params={"blocks": {"w": w, "b": jnp.full((8,), step, jnp.bfloat16)}},
        ema={"blocks": {"w": w / 3, "b": jnp.full((8,), step / 7, jnp.float32)}},
        moments=(None, jnp.int32(step), {"mu": w * 1e-3}),
        step=jnp.uint32(step),
    )


def abstract(state, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding and sharding(x)), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        assert x.shape == y.shape


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


def save_and_wait(ckpt: Checkpointer, step: int, state) -> None:
    ckpt.save(step, state)
    ckpt.wait()


def files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())

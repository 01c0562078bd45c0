"""Pairs of features by blocks: no more than `BLOCK`² pairs are in memory at a time."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BLOCK = 1024


def block_size(*counts: int) -> int:
    """Rows a block: at most `BLOCK`, and so that the blocks of the longest set are nearly full."""
    blocks = -(-max(counts) // BLOCK)
    return -(-max(counts) // blocks)


def in_blocks(rows: Float[np.ndarray, "n d"], size: int) -> Float[Array, "blocks {size} d"]:
    """Rows on the device as float32, filled up with rows of zeros."""
    filled = np.zeros((-(-len(rows) // size) * size, rows.shape[1]), np.float32)
    filled[: len(rows)] = rows
    return jax.device_put(filled.reshape(-1, size, rows.shape[1]))


def products(x: Float[Array, "a d"], y: Float[Array, "b d"]) -> Float[Array, "a b"]:
    """x · y in float32 proper: never in TF32 or bfloat16, which GPUs and TPUs take by default."""
    return jnp.matmul(x, y.T, precision="highest", preferred_element_type=jnp.float32)


def squared_distances(x: Float[Array, "a d"], y: Float[Array, "b d"]) -> Float[Array, "a b"]:
    """|x − y|² as |x|² + |y|² − 2 x · y. Rounding is relative to |x|² + |y|²: the features should be centred."""
    norms = jnp.square(x).sum(-1)[:, None] + jnp.square(y).sum(-1)[None]
    return jnp.maximum(norms - 2 * products(x, y), 0)


def check_features(**sets: Float[np.ndarray, "_n _d"]) -> None:
    """Raises ValueError, naming the set, unless all are finite and of one dimension."""
    if len({features.shape[1] for features in sets.values()}) > 1:
        shapes = ", ".join(f"{name} {features.shape}" for name, features in sets.items())
        raise ValueError(f"features must be of the same dimension, of one network: {shapes}")
    for name, features in sets.items():
        if not np.isfinite(features).all():
            row = int(np.argmin(np.isfinite(features).all(1)))
            raise ValueError(f"{name}: row {row} is not finite")

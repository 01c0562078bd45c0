"""Pairs of features by blocks: no more than `BLOCK`² pairs are in memory at a time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from zigma_jax.errors import DataError

BLOCK = 1024
_CLOSE = 1 / 32  # of |x|² + |y|²: below, a squared distance has lost more than 5 of float32's 24 bits
_FEW = 4096  # pairs a block that are worth taking one by one


def block_size(*counts: int) -> int:
    """Rows a block: at most `BLOCK`, and so that the blocks of the longest set are nearly full."""
    blocks = -(-max(counts) // BLOCK)
    return -(-max(counts) // blocks)


class Blocks(NamedTuple):
    """Rows (blocks, size, d) as float32, and beside them what the rounding to float32 took away."""

    rounded: Float[Array, "blocks size d"]
    rest: Float[Array, "blocks size d"]


def in_blocks(rows: Float[np.ndarray, "n d"], size: int) -> Blocks:
    """Rows on the device, filled up with rows of zeros."""
    rounded, rest = (np.zeros((-(-len(rows) // size) * size, rows.shape[1]), np.float32) for _ in range(2))
    rounded[: len(rows)] = rows
    rest[: len(rows)] = rows - rounded[: len(rows)]
    return Blocks(*(jax.device_put(part.reshape(-1, size, rows.shape[1])) for part in (rounded, rest)))


def products(x: Float[Array, "a d"], y: Float[Array, "b d"]) -> Float[Array, "a b"]:
    """x · y in float32 proper: never in TF32 or bfloat16, which GPUs and TPUs take by default."""
    return jnp.matmul(x, y.T, precision="highest", preferred_element_type=jnp.float32)


def squared_distances(x: Blocks, y: Blocks) -> Float[Array, "a b"]:
    """|x − y|² of every pair of two blocks, to a relative error of about 1e-5 even where x and y nearly agree.

    Most pairs are |x|² + |y|² − 2 x · y, one matrix product, whose rounding is relative to |x|² + |y|²: the features
    should be centred. Pairs much closer than that come from the differences themselves: one by one where they are
    few, as copies and near copies in a set are, and else the whole block, as in groups far from each other.
    """
    norms = jnp.square(x.rounded).sum(-1)[:, None] + jnp.square(y.rounded).sum(-1)[None]
    distances = norms - 2 * products(x.rounded, y.rounded)
    close = (distances < _CLOSE * norms) & (norms > 0)  # rows of zeros only fill up
    few = min(_FEW, close.size)

    def pairs(distances: Float[Array, "a b"]) -> Float[Array, "a b"]:
        i, j = jnp.nonzero(close, size=few, fill_value=0)

        def pair(at: tuple[Array, Array]) -> Float[Array, ""]:
            return _of_differences(x.rounded[at[0]] - y.rounded[at[1]], x.rest[at[0]] - y.rest[at[1]])

        exact = lax.map(pair, (i, j), batch_size=min(16, few))
        return distances.at[i, j].set(jnp.where(close[i, j], exact, distances[i, j]))

    def block(_: Float[Array, "a b"]) -> Float[Array, "a b"]:
        def row(of_x: tuple[Array, Array]) -> Float[Array, " b"]:
            return _of_differences(of_x[0] - y.rounded, of_x[1] - y.rest)

        return lax.map(row, (x.rounded, x.rest))

    how = jnp.where(close.any(), jnp.where(close.sum() <= few, 1, 2), 0)
    return jnp.maximum(lax.switch(how, [lambda distances: distances, pairs, block], distances), 0)


def _of_differences(rounded: Float[Array, "... d"], rest: Float[Array, "... d"]) -> Float[Array, "..."]:
    return jnp.square(rounded + rest).sum(-1)


def check_features(**sets: Float[np.ndarray, "_n _d"]) -> None:
    """Raises DataError, naming the set, unless all are finite and of one dimension."""
    if len({features.shape[1] for features in sets.values()}) > 1:
        shapes = ", ".join(f"{name} {features.shape}" for name, features in sets.items())
        raise DataError(f"features must be of the same dimension, of one network: {shapes}")
    for name, features in sets.items():
        if not np.isfinite(features).all():
            row = int(np.argmin(np.isfinite(features).all(1)))
            raise DataError(f"{name}: row {row} is not finite")

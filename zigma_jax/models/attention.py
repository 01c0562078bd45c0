"""Attention of tokens to tokens, in memory that does not grow with the square of their number."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_SCORES = 2**24  # of a sample's heads at once; 64 MB in float32


def attention(
    q: Float[Array, "b L heads size"], k: Float[Array, "b m heads size"], v: Float[Array, "b m heads size"]
) -> Float[Array, "b L heads size"]:
    """softmax(q·kᵀ / √size)·v of each head, `jax.nn.dot_product_attention`.

    Where a sample's scores would be many, they are computed for some queries at a time, and again in the backward
    pass. Softmax is in float32.
    """
    (length, heads), keys = q.shape[1:3], k.shape[1]
    if length * heads * keys <= _SCORES:
        return jax.nn.dot_product_attention(q, k, v)
    parts = next(n for n in range(1, length + 1) if length % n == 0 and length // n * heads * keys <= _SCORES)

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
    def some(part):
        return jax.nn.dot_product_attention(part, k, v)

    divided = jnp.moveaxis(q.reshape(q.shape[0], parts, -1, *q.shape[2:]), 1, 0)
    return jnp.moveaxis(jax.lax.map(some, divided), 0, 1).reshape(q.shape)

"""Attention of tokens to tokens, in memory that does not grow with the square of their number."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from zigma_kernels.dispatch import nvidia_capability

from zigma_jax.models.initializers import xavier_uniform, zeros
from zigma_jax.models.linear import Linear

_QUERIES = 512  # at once, where there are more


class SelfAttention(nnx.Module):
    """qkv → attention of each head, to all tokens → proj (`Attention` of timm's vision transformer, as in SiT).

    Args:
        hidden_size: width of the tokens; `num_heads` divides it.
        num_heads: heads, each of hidden_size // num_heads channels.
        qk_norm: queries and keys are normalised by their root mean square, each head's (arXiv 2302.05442).
        rotary: the token grid, for rotary positions along its axes (RoPE, arXiv 2104.09864); None is none.
        dtype: of the products; softmax is in float32.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        qk_norm: bool = False,
        rotary: tuple[int, ...] | None = None,
        dtype,
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(Linear, dtype=dtype, kernel_init=xavier_uniform, bias_init=zeros, rngs=rngs)
        self.num_heads, self.rotary = num_heads, rotary
        self.qkv, self.proj = linear(hidden_size, 3 * hidden_size), linear(hidden_size, hidden_size)
        if qk_norm:
            self.norm_query, self.norm_key = (
                nnx.RMSNorm(hidden_size // num_heads, epsilon=1e-6, dtype=dtype, rngs=rngs) for _ in range(2)
            )

    def __call__(
        self, x: Float[Array, "b L hidden"], orders, gate: Float[Array, "b hidden"]
    ) -> Float[Array, "b L hidden"]:
        """Mixes all tokens with all, and scales by the gate; `orders` means nothing to it."""
        del orders
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.num_heads, -1)
        q, k, v = jnp.moveaxis(qkv, -3, 0)
        if hasattr(self, "norm_query"):
            q, k = self.norm_query(q), self.norm_key(k)
        if self.rotary is not None:
            q, k = rotate(q, self.rotary), rotate(k, self.rotary)
        return self.proj.gated(attention(q, k, v).reshape(x.shape), gate)


def attention(
    q: Float[Array, "b L heads size"], k: Float[Array, "b m heads size"], v: Float[Array, "b m heads size"]
) -> Float[Array, "b L heads size"]:
    """softmax(q·kᵀ / √size)·v of each head, `jax.nn.dot_product_attention`.

    On NVIDIA GPUs, from Ampere on, that is cuDNN's flash attention wherever it can be: in bfloat16, of heads of at
    most 128 channels, a multiple of 8. Elsewhere, where tokens are many, it is computed for one head and some queries
    at a time, so that the scores stay in a CPU's cache, and computed again in the backward pass. Softmax is in float32.
    """
    length, size, keys = q.shape[1], q.shape[3], k.shape[1]
    capability = nvidia_capability()
    if capability and capability >= (8, 0) and q.dtype == jnp.bfloat16 and size % 8 == 0 and size <= 128:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    if length * keys <= _QUERIES**2:
        return jax.nn.dot_product_attention(q, k, v)
    rows = next(n for n in range(min(_QUERIES, length), 0, -1) if length % n == 0)

    def of_one_head(qkv):
        q, k, v = qkv

        @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
        def some(q):
            scores = jnp.matmul(q, k.T, preferred_element_type=jnp.float32) / math.sqrt(size)
            return jax.nn.softmax(scores, axis=-1).astype(v.dtype) @ v

        return jax.lax.map(some, q.reshape(-1, rows, size)).reshape(length, size)

    # One after the other are heads, and not samples: those may lie on different devices.
    mixed = jax.lax.map(jax.vmap(of_one_head), [jnp.moveaxis(a, 2, 0) for a in (q, k, v)])
    return jnp.moveaxis(mixed, 0, 2)


def rotate(x: Float[Array, "b L heads size"], grid: tuple[int, ...]) -> Float[Array, "b L heads size"]:
    """x with rotary positions: of each grid axis an equal share of the channels, in pairs, turned by its coordinate.

    Scalar products of two rotated tokens depend on their difference along each axis. Channels beyond the shares stay
    as they are. Angles are float32.
    """
    pairs = x.shape[-1] // (2 * len(grid))
    frequency = 100.0 ** (-np.arange(pairs) / pairs)  # coordinates are tens, not thousands as in text
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1).reshape(-1, len(grid), 1)
    angle = (places * frequency).reshape(-1, 1, len(grid) * pairs).astype(np.float32)
    turned = x[..., : 2 * angle.shape[-1]].astype(jnp.float32)
    a, b = jnp.split(turned, 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., turned.shape[-1] :]], axis=-1)

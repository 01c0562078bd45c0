"""One layer of ZigMa: residual, norm, modulated mixer and, with text, cross attention (`Block` of model_zigma.py)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float
from zigma_kernels import GridPath

from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.initializers import torch_linear, zeros
from zigma_jax.models.linear import Linear
from zigma_jax.models.mixer import Mixer
from zigma_jax.models.text import Text


def modulate(x: Float[Array, "b L hidden"], shift: Float[Array, "b hidden"], scale: Float[Array, "b hidden"]):
    """x·(1 + scale) + shift, the same for all tokens of a sample."""
    return x * (1 + scale[:, None]) + shift[:, None]


class CrossAttention(nnx.Module):
    """Image tokens attend to text tokens: 8 heads of 64 whatever the width (`CrossAttention` of model_zigma.py)."""

    heads, head_size = 8, 64

    def __init__(self, hidden_size: int, *, dtype, rngs: nnx.Rngs):
        inner = self.heads * self.head_size

        def linear(size_in, size_out, use_bias):
            return Linear(
                size_in,
                size_out,
                use_bias=use_bias,
                dtype=dtype,
                kernel_init=torch_linear,
                bias_init=zeros,
                rngs=rngs,
            )

        self.query = linear(hidden_size, inner, False)
        self.key = linear(hidden_size, inner, False)
        self.value = linear(hidden_size, inner, False)
        self.out = linear(inner, hidden_size, True)

    def __call__(self, x: Float[Array, "b L hidden"], text: Text) -> Float[Array, "b L hidden"]:
        tokens = jnp.asarray(text.tokens)

        def split_heads(a):
            return a.reshape(*a.shape[:-1], self.heads, self.head_size)

        mask = None if text.mask is None else text.mask[:, None, None, :]
        key, value = self.key(tokens), self.value(tokens)
        attended = jax.nn.dot_product_attention(
            split_heads(self.query(x)), split_heads(key), split_heads(value), mask=mask
        )
        return self.out(attended.reshape(*x.shape[:-1], -1))


class Block(nnx.Module):
    """residual += x; x = norm(residual); x += gate·mixer(modulate(x)); with text x += gate·attention(modulate(LN(x))).

    The sums are with the *normed* x; the residual stream runs beside it in float32.
    """

    def __init__(self, cfg: ZigMaConfig, directions: int, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(cfg.dtype)
        size = cfg.hidden_size
        self.norm = nnx.RMSNorm(size, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.modulation = Linear(
            size,
            (6 if cfg.context_size else 3) * size,
            dtype=dtype,
            kernel_init=zeros,
            bias_init=zeros,
            rngs=rngs,
        )
        self.mixer = Mixer(cfg, directions, rngs=rngs)
        if cfg.context_size:
            self.norm_attention = nnx.LayerNorm(
                size,
                epsilon=1e-6,
                use_bias=False,
                use_scale=False,
                use_fast_variance=False,
                dtype=dtype,
                rngs=rngs,
            )
            self.attention = CrossAttention(size, dtype=dtype, rngs=rngs)
        if cfg.pos_embed == "per_layer":
            self.pos_embed = nnx.Param(jnp.zeros((cfg.num_tokens, size)))

    def __call__(
        self,
        x: Float[Array, "b L hidden"],
        residual: Float[Array, "b L hidden"],
        c: Float[Array, "b hidden"],
        text: Text | None,
        orders: tuple[GridPath, ...],
        keep: Float[Array, " b"] | None,
    ) -> tuple[Float[Array, "b L hidden"], Float[Array, "b L hidden"]]:
        """One layer. keep (b,) scales what enters the residual stream (stochastic depth); None means 1."""
        if hasattr(self, "pos_embed"):
            x = x + self.pos_embed[...].astype(x.dtype)
        branch = x if keep is None else x * keep[:, None, None]
        # Left to itself, XLA may store it with the batch innermost, and transpose wherever it meets a product.
        residual = with_layout_constraint(residual + branch.astype(jnp.float32), Layout((0, 1, 2)))
        x = self.norm(residual)

        shift, scale, gate, *attention = jnp.split(
            self.modulation(jax.nn.silu(c)), self.modulation.out_features // x.shape[-1], axis=-1
        )
        x = x + gate[:, None] * self.mixer(modulate(x, shift, scale), orders)
        if attention and text is not None:
            shift, scale, gate = attention
            x = x + gate[:, None] * self.attention(modulate(self.norm_attention(x), shift, scale), text)
        return x, residual

"""One layer of ZigMa: residual, norm, modulated mixer, with text cross attention, with mlp_ratio an MLP.

Source: `Block` of model_zigma.py; the MLP is DiT's.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float
from zigma_kernels import GridPath, Visit

from zigma_jax.models.attention import SelfAttention
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.initializers import torch_linear, xavier_uniform, zeros
from zigma_jax.models.linear import Linear
from zigma_jax.models.mamba2 import Mamba2Mixer
from zigma_jax.models.mixer import Mixer
from zigma_jax.models.text import Text


def modulate(x: Float[Array, "b L hidden"], shift: Float[Array, "b hidden"], scale: Float[Array, "b hidden"]):
    """x·(1 + scale) + shift, the same for all tokens of a sample."""
    return x * (1 + scale[:, None]) + shift[:, None]


def layer_norm(size: int, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Without scale and bias, which come with the modulation."""
    return nnx.LayerNorm(
        size, epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


class MLP(nnx.Module):
    """Linear → GELU (by tanh) → Linear, of each token (`Mlp` of timm, as in DiT and SiT), scaled by the gate."""

    def __init__(self, size: int, inner_size: int, *, dtype, rngs: nnx.Rngs):
        linear = functools.partial(Linear, dtype=dtype, kernel_init=xavier_uniform, bias_init=zeros, rngs=rngs)
        self.linear_in, self.linear_out = linear(size, inner_size), linear(inner_size, size)

    def __call__(self, x: Float[Array, "b L hidden"], gate: Float[Array, "b hidden"]) -> Float[Array, "b L hidden"]:
        return self.linear_out.gated(jax.nn.gelu(self.linear_in(x), approximate=True), gate)


def make_mixer(kind: str, cfg: ZigMaConfig, directions: int, *, rngs: nnx.Rngs) -> Mixer | Mamba2Mixer | SelfAttention:
    """The mixer called `kind`, a function of (tokens, orders, gate) → tokens in raster order, scaled by the gate."""
    if kind == "attention":
        return SelfAttention(
            cfg.hidden_size,
            cfg.hidden_size // cfg.head_size,
            qk_norm=cfg.qk_norm,
            rotary=cfg.grid if cfg.rotary else None,
            dtype=jnp.dtype(cfg.dtype),
            rngs=rngs,
        )
    return {"mamba": Mixer, "mamba2": Mamba2Mixer}[kind](cfg, directions, rngs=rngs)


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
    """x = norm(residual); x += gate·mixer(modulate(x)); residual += x.

    With text x += gate·attention(modulate(LN(x))), and with an MLP x += gate·MLP(modulate(LN(x))), before the last sum.
    The inner sums are with the *normed* x. The residual stream, in float32, is all that goes from layer to layer.
    """

    def __init__(self, cfg: ZigMaConfig, mixer: str, directions: int, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(cfg.dtype)
        size = cfg.hidden_size
        self.norm = nnx.RMSNorm(size, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.modulation = Linear(
            size,
            (3 + (3 if cfg.context_size else 0) + (3 if cfg.mlp_ratio else 0)) * size,
            dtype=dtype,
            kernel_init=zeros,
            bias_init=zeros,
            rngs=rngs,
        )
        self.mixer = make_mixer(mixer, cfg, directions, rngs=rngs)
        if cfg.context_size:
            self.norm_attention = layer_norm(size, dtype, rngs)
            self.attention = CrossAttention(size, dtype=dtype, rngs=rngs)
        if cfg.mlp_ratio:
            self.norm_mlp = layer_norm(size, dtype, rngs)
            self.mlp = MLP(size, round(cfg.mlp_ratio * size), dtype=dtype, rngs=rngs)
        if cfg.pos_embed == "per_layer":
            self.pos_embed = nnx.Param(jnp.zeros((cfg.num_tokens, size)))

    def __call__(
        self,
        residual: Float[Array, "b L hidden"],
        c: Float[Array, "b hidden"],
        text: Text | None,
        orders: tuple[GridPath | Visit, ...],
        keep: Float[Array, "2 b"] | None,
    ) -> Float[Array, "b L hidden"]:
        """One layer: the residual stream (b, L, hidden), float32, before it and after it.

        keep: what scales what enters the stream, at this layer and at the next (stochastic depth); None means 1.
        """
        if hasattr(self, "pos_embed"):
            positions = self.pos_embed[...].astype(jnp.float32)
            residual = residual + (positions if keep is None else positions * keep[0][:, None, None])
        # Left to itself, XLA may store it with the batch innermost, and transpose wherever it meets a product.
        residual = with_layout_constraint(residual, Layout((0, 1, 2)))
        x = self.norm(residual)

        parts = iter(jnp.split(self.modulation(jax.nn.silu(c)), self.modulation.out_features // x.shape[-1], axis=-1))
        shift, scale, gate = next(parts), next(parts), next(parts)
        x = x + self.mixer(modulate(x, shift, scale), orders, gate)
        if hasattr(self, "attention"):
            shift, scale, gate = next(parts), next(parts), next(parts)
            if text is not None:
                x = x + gate[:, None] * self.attention(modulate(self.norm_attention(x), shift, scale), text)
        if hasattr(self, "mlp"):
            shift, scale, gate = next(parts), next(parts), next(parts)
            x = x + self.mlp(modulate(self.norm_mlp(x), shift, scale), gate)
        return residual + (x if keep is None else x * keep[1][:, None, None]).astype(jnp.float32)

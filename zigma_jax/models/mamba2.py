"""The Mamba-2 mixer: heads with one decay each, scanned as products of matrices, in a visiting order.

Source: `Mamba2` of mamba2.py (arXiv 2405.21060), channels last and with the visiting order inside the ops. One group:
B and C are shared by the heads.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from zigma_kernels import GridPath, Visit, causal_conv, ssd

from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.initializers import (
    log_uniform_decay,
    time_step_bias,
    torch_linear,
    torch_linear_scaled,
    uniform,
)
from zigma_jax.models.linear import Linear


class SSD(nnx.Module):
    """B, C and time steps of the tokens, convolution, and the scan, in one direction."""

    def __init__(self, cfg: ZigMaConfig, *, rngs: nnx.Rngs):
        d, n, width = cfg.inner_size, cfg.state_size, cfg.conv_width
        self.heads = d // cfg.head_size
        params = rngs.params
        self.proj = Linear(
            cfg.hidden_size,
            2 * n + self.heads,
            use_bias=False,
            dtype=jnp.dtype(cfg.dtype),
            kernel_init=torch_linear,
            rngs=rngs,
        )
        init = uniform(width**-0.5)
        self.conv_kernel, self.conv_bias = nnx.Param(init(params(), (width, d))), nnx.Param(init(params(), (d,)))
        self.conv_kernel_bc = nnx.Param(init(params(), (width, 2 * n)))
        self.conv_bias_bc = nnx.Param(init(params(), (2 * n,)))
        self.dt_bias = nnx.Param(time_step_bias()(params(), (self.heads,)))
        self.A_log = nnx.Param(log_uniform_decay(params(), (self.heads,)))
        self.D = nnx.Param(jnp.ones(self.heads))

    def __call__(
        self, x: Float[Array, "b L hidden"], u: Float[Array, "b L d"], order: GridPath | Visit
    ) -> Float[Array, "b L d"]:
        projected = self.proj(x)
        bc, dt = projected[..., : -self.heads], projected[..., -self.heads :]
        u = causal_conv(u, self.conv_kernel[...], self.conv_bias[...], order=order, activation="silu")
        bc = causal_conv(bc, self.conv_kernel_bc[...], self.conv_bias_bc[...], order=order, activation="silu")
        B, C = jnp.split(bc, 2, axis=-1)
        y = ssd(
            u.reshape(*u.shape[:-1], self.heads, -1),
            dt,
            -jnp.exp(self.A_log[...]),
            B,
            C,
            self.D[...],
            self.dt_bias[...],  # enters inside the softplus, in float32
            order=order,
        )
        return y.reshape(u.shape)


class Mamba2Mixer(nnx.Module):
    """in_proj → u, z; one SSD a direction, their outputs added; norm(y·SiLU(z)); out_proj.

    The original's one large projection is in_proj and the directions' proj here: the same product in parts.
    """

    def __init__(self, cfg: ZigMaConfig, directions: int, *, rngs: nnx.Rngs):
        dtype, d = jnp.dtype(cfg.dtype), cfg.inner_size
        self.in_proj = Linear(cfg.hidden_size, 2 * d, use_bias=False, dtype=dtype, kernel_init=torch_linear, rngs=rngs)
        self.ssd = SSD(cfg, rngs=rngs)
        self.ssd_reverse = SSD(cfg, rngs=rngs) if directions == 2 else None
        self.norm = nnx.RMSNorm(d, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(
            d,
            cfg.hidden_size,
            use_bias=False,
            dtype=dtype,
            kernel_init=torch_linear_scaled(cfg.depth),
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "b L hidden"], orders: tuple[GridPath | Visit, ...], gate: Float[Array, "b hidden"]
    ) -> Float[Array, "b L hidden"]:
        """Mixes along the orders, one a direction, and scales by the gate; x and the result are in raster order."""
        u, z = self.in_proj.parts(x, 2)
        y = self.ssd(x, u, orders[0])
        if self.ssd_reverse is not None:
            y = y + self.ssd_reverse(x, u, orders[1])
        return self.out_proj.gated(self.norm(y * jax.nn.silu(z)), gate)

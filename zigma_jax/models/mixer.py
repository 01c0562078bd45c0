"""The Mamba mixer: a gated selective scan over the tokens, in a visiting order.

Source: `Mamba` of mamba_simple.py (arXiv 2312.00752), channels last and with the visiting order inside the ops.
"""

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float
from zigma_kernels import GridPath, Visit

from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.initializers import (
    log_arange,
    time_step_bias,
    torch_linear,
    torch_linear_scaled,
    uniform,
    zeros,
)
from zigma_jax.models.linear import Linear
from zigma_jax.models.sequence import Order, causal_conv, in_visiting_order, selective_scan


class SSM(nnx.Module):
    """Convolution, input-dependent B, C and time steps, and the selective scan, in one direction."""

    def __init__(self, cfg: ZigMaConfig, *, dt_bias_init, rngs: nnx.Rngs):
        d, n, width = cfg.inner_size, cfg.state_size, cfg.conv_width
        dtype = jnp.dtype(cfg.dtype)
        self.splits = (cfg.dt_rank, cfg.dt_rank + n)
        self.implementation = cfg.scan_implementation

        params = rngs.params
        self.conv_kernel = nnx.Param(uniform(width**-0.5)(params(), (width, d)))
        self.conv_bias = nnx.Param(uniform(width**-0.5)(params(), (d,)))
        self.x_proj = Linear(d, cfg.dt_rank + 2 * n, use_bias=False, dtype=dtype, kernel_init=torch_linear, rngs=rngs)
        self.dt_proj = Linear(
            cfg.dt_rank, d, use_bias=False, dtype=dtype, kernel_init=uniform(cfg.dt_rank**-0.5), rngs=rngs
        )
        self.dt_bias = nnx.Param(dt_bias_init(params(), (d,)))
        self.A_log = nnx.Param(log_arange(params(), (d, n)))
        self.D = nnx.Param(jnp.ones(d))

    def __call__(self, x: Float[Array, "b L d"], z: Float[Array, "b L d"], order: Order) -> Float[Array, "b L d"]:
        u = causal_conv(x, self.conv_kernel[...], self.conv_bias[...], order=order, activation="silu")
        dt, B, C = jnp.split(self.x_proj(u), self.splits, axis=-1)
        return selective_scan(
            u,
            self.dt_proj(dt),
            -jnp.exp(self.A_log[...]),
            B,
            C,
            self.D[...],
            z,
            self.dt_bias[...],  # enters inside the softplus, in float32
            order=order,
            implementation=self.implementation,
        )


class Mixer(nnx.Module):
    """in_proj → x, z; one SSM a direction, their outputs added; out_proj.

    One direction for all orders but "sweep2", whose second parameter set runs over the reversed sequence.
    """

    def __init__(self, cfg: ZigMaConfig, directions: int, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(cfg.dtype)
        self.in_proj = Linear(
            cfg.hidden_size,
            2 * cfg.inner_size,
            use_bias=False,
            dtype=dtype,
            kernel_init=torch_linear,
            rngs=rngs,
        )
        self.ssm = SSM(cfg, dt_bias_init=time_step_bias(), rngs=rngs)
        # The original zeroes the second direction's time-step bias together with all other linear biases.
        self.ssm_reverse = SSM(cfg, dt_bias_init=zeros, rngs=rngs) if directions == 2 else None
        self.out_proj = Linear(
            cfg.inner_size,
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
        x, visits, laid_back = in_visiting_order(x, orders)
        u, z = checkpoint_name(self.in_proj.parts(x, 2), "in_proj")
        y = self.ssm(u, z, visits[0])
        if self.ssm_reverse is not None:
            y = y + self.ssm_reverse(u, z, visits[1])
        return laid_back(self.out_proj.gated(y, gate))

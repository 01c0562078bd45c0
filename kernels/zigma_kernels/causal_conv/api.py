"""The public causal convolution: checks the call, then hands it to an implementation."""

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from zigma_kernels.causal_conv import cpu, reference, xla
from zigma_kernels.dispatch import CpuKernel, Implementation, NvidiaKernel, dispatch
from zigma_kernels.partitioned import vary_alike
from zigma_kernels.visiting import Order, check_order, num_segments


def _mosaic_gpu(*args):
    from zigma_kernels.causal_conv import mosaic_gpu  # on demand: Pallas takes a second to import

    return mosaic_gpu.causal_conv(*args)


# In order of preference: fastest first, as measured; what has not been measured on a device comes last, for calls that
# ask for it by name. Each is a function of (x, weight, bias, order, activation, initial_state) -> y, with every
# argument but order and activation an array; `order` comes checked, with raster as None. It raises
# NotImplementedError, with the reason, for a call that it does not support.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "cpu": CpuKernel(cpu.causal_conv),
    "xla": xla.causal_conv,
    "reference": reference.causal_conv,
    "mosaic_gpu": NvidiaKernel(_mosaic_gpu, capability=(8, 0)),
}


def causal_conv(
    x: Float[Array, "b L d"],
    weight: Float[Array, "width d"],
    bias: Float[Array, " d"] | None = None,
    *,
    order: Order = None,
    activation: Literal["silu"] | None = "silu",
    initial_state: Float[Array, "b *segments past d"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "b L d"]:
    """Depthwise causal convolution over tokens visited in a chosen order, as in a Mamba block.

        y_t = silu(bias + sum_k weight[width - 1 - k] x_{t - k})

    where t counts visited tokens. Sums in float32 (float64 if an argument is float64). All array arguments
    are differentiable; in forward mode, and more than once, by "reference".

    Args:
        x: input.
        weight: 2 to 4 taps; `weight[-1]` multiplies the current token. PyTorch's Mamba keeps its transpose,
            `conv1d.weight[:, 0, :]`.
        bias: zero if omitted.
        order: the visiting order, as in `selective_scan`. x and y stay in raster order. The window starts
            afresh at each segment of a GridPath.
        activation: "silu" or None.
        initial_state: the width - 1 tokens before the first visited one, zero if omitted:
            (b, width - 1, d), and (b, segments, width - 1, d) for a GridPath with more than one segment.
        implementation: None for the fastest that supports the call on this machine (`zigma_kernels.explain`
            says which and why), or a name from `IMPLEMENTATIONS`, which never falls back to another.

    Returns:
        y in x's dtype.

    Raises:
        ValueError: a shape, the width, the activation or the order does not fit, or `implementation` is
            unknown.
        TypeError: the order is not of a kind that `selective_scan` takes.
        NotImplementedError: the implementation named does not support this call.
    """
    order = check_order(order, x.shape[1])
    _check(x, weight, bias, activation, initial_state, num_segments(order))
    given = [a for a in (x, weight, bias, initial_state) if a is not None]
    acc = jnp.promote_types(jnp.result_type(*given), jnp.float32)
    bias = jnp.zeros(x.shape[2], acc) if bias is None else bias
    if initial_state is None:
        initial_state = jnp.zeros((x.shape[0], num_segments(order), len(weight) - 1, x.shape[2]), x.dtype)
    x, weight, bias, initial_state = vary_alike((x, weight, bias, initial_state))
    args = (x, weight, bias, order, activation, initial_state)
    return dispatch("causal_conv", IMPLEMENTATIONS, implementation, *args)


def _check(x, weight, bias, activation, initial_state, segments):
    b, _, d = x.shape
    if weight.ndim != 2 or weight.shape[1] != d or not 2 <= weight.shape[0] <= 4:
        raise ValueError(f"weight: expected shape (width, d) with width 2 to 4 and d = {d}, got {weight.shape}")
    if bias is not None and bias.shape != (d,):
        raise ValueError(f"bias: expected shape (d,) = ({d},), got {bias.shape}")
    if activation not in ("silu", None):
        raise ValueError(f"activation: expected 'silu' or None, got {activation!r}")
    past = len(weight) - 1
    state = (b, past, d) if segments == 1 else (b, segments, past, d)
    if initial_state is not None and initial_state.shape != state:
        raise ValueError(f"initial_state: expected shape {state}, got {initial_state.shape}")

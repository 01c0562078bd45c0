"""The public selective scan: checks the call, then hands it to an implementation."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from zigma_kernels.dispatch import CpuKernel, Implementation, NvidiaKernel, dispatch
from zigma_kernels.partitioned import vary_alike
from zigma_kernels.selective_scan import cpu, mosaic_gpu, reference, triton_scan, xla
from zigma_kernels.visiting import Order, check_order, num_segments

# In order of preference: fastest first, as measured; what has not been measured on a device comes last, for calls that
# ask for it by name. Each is a function of
#   (u, dt, A, B, C, D, z, dt_bias, order, initial_state) -> (y, final_state)
# with every argument but z and order an array; `order` comes checked, with raster as None. It raises
# NotImplementedError, with the reason, for a call that it does not support.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "mosaic_gpu": NvidiaKernel(mosaic_gpu.selective_scan, (9, 0)),
    "cpu": CpuKernel(cpu.selective_scan),
    "xla": xla.selective_scan,
    "reference": reference.selective_scan,
    "triton": NvidiaKernel(triton_scan.selective_scan, (8, 0)),
}


def selective_scan(
    u: Float[Array, "b L d"],
    dt: Float[Array, "b L d"],
    A: Float[Array, "d n"],
    B: Float[Array, "b L n"],
    C: Float[Array, "b L n"],
    D: Float[Array, " d"] | None = None,
    z: Float[Array, "b L d"] | None = None,
    dt_bias: Float[Array, " d"] | None = None,
    *,
    order: Order = None,
    initial_state: Float[Array, "b *segments d n"] | None = None,
    return_final_state: bool = False,
    implementation: str | None = None,
) -> Any:
    """Mamba's selective scan over tokens visited in a chosen order.

        delta_t = softplus(dt_t + dt_bias)
        h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t
        y_t = (C_t . h_t + D u_t) SiLU(z_t)

    (Gu & Dao, "Mamba", arXiv 2312.00752, section 3; B is discretised by Euler's rule, as in their code.) The
    recurrence and every gradient accumulate in float32 (float64 if an argument is float64). All array
    arguments are differentiable; in forward mode, and more than once, by "reference".

    Args:
        u: input.
        dt: step size before its bias and the softplus.
        A: state decay, negative, float32: rounded to bfloat16, its error would grow with the sequence.
        B: input projection, shared by the channels.
        C: output projection, shared by the channels.
        D: skip connection; none if omitted.
        z: gate, applied as SiLU(z); none if omitted.
        dt_bias: bias of the step size; zero if omitted.
        order: the visiting order; None is raster. A `GridPath`, or an integer permutation (L,), numpy or jax
            (then possibly traced, and unchecked), whose entry i is the token visited i-th; or a `Visit`, a path as
            data, of a loop over several. Arrays in and out stay in raster order. Of a path with several segments,
            each is scanned from its own state.
        initial_state: state before the first visited token, zero if omitted: (b, d, n), and
            (b, segments, d, n) for a GridPath with more than one segment.
        return_final_state: whether to return the state after the last visited token as well.
        implementation: None for the fastest that supports the call on this machine (`zigma_kernels.explain`
            says which and why), or a name from `IMPLEMENTATIONS`, which never falls back to another.

    Returns:
        y (b, L, d) in u's dtype; with `return_final_state`, (y, final state), the state shaped as
        `initial_state` and in float32 (float64 if an argument is float64).

    Raises:
        ValueError: a shape or the order does not fit, or `implementation` is unknown.
        TypeError: the order is not of a kind listed above.
        NotImplementedError: the implementation named does not support this call.
    """
    order = check_order(order, u.shape[1])
    _check_shapes(u, dt, A, B, C, D, z, dt_bias, initial_state, num_segments(order))
    (b, _, d), n, segments = u.shape, A.shape[1], num_segments(order)

    given = [x for x in (u, dt, A, B, C, D, z, dt_bias, initial_state) if x is not None]
    state_dtype = jnp.promote_types(jnp.result_type(*given), jnp.float32)
    state_shape = (b, d, n) if segments == 1 else (b, segments, d, n)
    D = jnp.zeros(d, state_dtype) if D is None else D
    dt_bias = jnp.zeros(d, state_dtype) if dt_bias is None else dt_bias
    state = jnp.zeros(state_shape, state_dtype) if initial_state is None else initial_state.astype(state_dtype)

    arrays = vary_alike((u, dt, A, B, C, D, z, dt_bias, state))
    y, state = dispatch("selective_scan", IMPLEMENTATIONS, implementation, *arrays[:-1], order, arrays[-1])
    return (y, state) if return_final_state else y


def _check_shapes(u, dt, A, B, C, D, z, dt_bias, initial_state, segments):
    b, L, d = u.shape
    if A.ndim != 2 or A.shape[0] != d:
        raise ValueError(f"A: expected shape (d, n) with d = {d} as in u {u.shape}, got {A.shape}")
    n = A.shape[1]
    state = (b, d, n) if segments == 1 else (b, segments, d, n)
    for name, x, axes, shape in (
        ("dt", dt, "(b, L, d)", (b, L, d)),
        ("B", B, "(b, L, n)", (b, L, n)),
        ("C", C, "(b, L, n)", (b, L, n)),
        ("D", D, "(d,)", (d,)),
        ("z", z, "(b, L, d)", (b, L, d)),
        ("dt_bias", dt_bias, "(d,)", (d,)),
        ("initial_state", initial_state, "(b, d, n)" if segments == 1 else "(b, segments, d, n)", state),
    ):
        if x is not None and x.shape != shape:
            raise ValueError(f"{name}: expected shape {axes} = {shape} for u {u.shape} and A {A.shape}, got {x.shape}")

"""The public SSD: checks the call, then hands it to an implementation."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from zigma_kernels.dispatch import Implementation, dispatch
from zigma_kernels.partitioned import vary_alike
from zigma_kernels.ssd import chunked, reference
from zigma_kernels.visiting import Order, check_order, num_segments

# In order of preference. Each is a function of (u, dt, A, B, C, D, dt_bias, order, initial_state) -> (y, final_state)
# with every argument but order an array; `order` comes checked, with raster as None.
IMPLEMENTATIONS: dict[str, Implementation] = {"chunked": chunked.ssd, "reference": reference.ssd}


def ssd(
    u: Float[Array, "b L heads size"],
    dt: Float[Array, "b L heads"],
    A: Float[Array, " heads"],
    B: Float[Array, "b L n"],
    C: Float[Array, "b L n"],
    D: Float[Array, " heads"] | None = None,
    dt_bias: Float[Array, " heads"] | None = None,
    *,
    order: Order = None,
    initial_state: Float[Array, "b *segments heads size n"] | None = None,
    return_final_state: bool = False,
    implementation: str | None = None,
) -> Any:
    """Mamba-2's scan (state space duality) over tokens visited in a chosen order.

        delta_t = softplus(dt_t + dt_bias)
        h_t = exp(delta_t A) h_{t-1} + delta_t u_t ⊗ B_t
        y_t = h_t C_t + D u_t

    (Dao & Gu, "Transformers are SSMs", arXiv 2405.21060.) It is the selective scan with one decay a head, which makes
    it products of matrices. Decays, states and sums are float32 (float64 if an argument is float64); the products'
    operands have u's dtype. All array arguments are differentiable.

    Args:
        u: input, heads of `size` channels.
        dt: step size before its bias and the softplus.
        A: state decay, negative, float32.
        B: input projection, shared by the heads.
        C: output projection, shared by the heads.
        D: skip connection; none if omitted.
        dt_bias: bias of the step size; zero if omitted.
        order: the visiting order, as in `selective_scan`. Arrays in and out stay in raster order.
        initial_state: state before the first visited token, zero if omitted: (b, heads, size, n), and
            (b, segments, heads, size, n) for a GridPath with more than one segment.
        return_final_state: whether to return the state after the last visited token as well.
        implementation: None for the fastest, or a name from `IMPLEMENTATIONS`.

    Returns:
        y (b, L, heads, size) in u's dtype; with `return_final_state`, (y, final state), the state shaped as
        `initial_state` and in float32 (float64 if an argument is float64).

    Raises:
        ValueError: a shape or the order does not fit, or `implementation` is unknown.
        TypeError: the order is not of a kind that `selective_scan` takes.
    """
    order = check_order(order, u.shape[1])
    state_shape = _check(u, dt, A, B, C, D, dt_bias, initial_state, num_segments(order))
    heads = u.shape[2]
    given = [x for x in (u, dt, A, B, C, D, dt_bias, initial_state) if x is not None]
    acc = jnp.promote_types(jnp.result_type(*given), jnp.float32)
    D = jnp.zeros(heads, acc) if D is None else D
    dt_bias = jnp.zeros(heads, acc) if dt_bias is None else dt_bias
    state = jnp.zeros(state_shape, acc) if initial_state is None else initial_state.astype(acc)
    arrays = vary_alike((u, dt, A, B, C, D, dt_bias, state))
    y, state = dispatch("ssd", IMPLEMENTATIONS, implementation, *arrays[:-1], order, arrays[-1])
    return (y, state) if return_final_state else y


def _check(u, dt, A, B, C, D, dt_bias, initial_state, segments) -> tuple[int, ...]:
    """Raises ValueError for shapes that do not fit; returns the state's."""
    b, length, heads, size = u.shape
    n = B.shape[-1]
    state_shape = (b, heads, size, n) if segments == 1 else (b, segments, heads, size, n)
    for name, x, shape in (
        ("dt", dt, (b, length, heads)),
        ("A", A, (heads,)),
        ("B", B, (b, length, n)),
        ("C", C, (b, length, n)),
        ("D", D, (heads,)),
        ("dt_bias", dt_bias, (heads,)),
        ("initial_state", initial_state, state_shape),
    ):
        if x is not None and x.shape != shape:
            raise ValueError(f"{name}: expected shape {shape} for u {u.shape}, got {x.shape}")
    return state_shape

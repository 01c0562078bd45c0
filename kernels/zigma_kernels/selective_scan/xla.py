"""The selective scan in plain XLA, its adjoint written by hand.

The sequence is cut into chunks of `CHUNK` tokens. The forward pass keeps the state at each chunk's start and
nothing else of size n; the backward pass goes through the chunks from the last to the first, recomputes the
states of one, and runs the adjoint through it. With a_t = exp(delta_t A), x_t = delta_t u_t B_t, and dy the
gradient of C_t . h_t:

    l_t = C_t dy_t + g_t               gradient of h_t
    g_{t-1} = a_t l_t                  what reaches h_{t-1} from later tokens
    dC_t = sum_d h_t dy_t              dB_t = sum_d l_t delta_t u_t
    d(delta_t u_t) = sum_n l_t B_t     dA += delta_t p_t,   p_t = g_{t-1} h_{t-1}
    ddelta_t = sum_n A p_t + u_t d(delta_t u_t)

How a chunk is computed depends on the platform, and is chosen when the program is lowered: token by token on
a CPU (`xla_tokens`), by associative scans elsewhere (`xla_chunks`). Inside, states are (b, n, d): channels
innermost.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from zigma_kernels.selective_scan import xla_chunks, xla_tokens
from zigma_kernels.visiting import Visit


def with_adjoint(forward, backward):
    """The differentiable scan, (visit, *arrays) -> (y, final state), of a pair as in `xla_tokens`."""

    @jax.custom_vjp
    def scan(visit, *arrays):
        return forward(visit, *arrays)[:2]

    def scan_fwd(visit, *arrays):
        y, state, starts = checkpoint_name(forward(visit, *arrays), "selective_scan")
        return (y, state), (visit, starts, arrays)

    def scan_bwd(residuals, gradients):
        visit, starts, arrays = residuals
        return None, *backward(visit, starts, *gradients, *arrays)

    scan.defvjp(scan_fwd, scan_bwd)
    return scan


_by_platform = with_adjoint(
    functools.partial(lax.platform_dependent, cpu=xla_tokens.forward, default=xla_chunks.forward),
    functools.partial(lax.platform_dependent, cpu=xla_tokens.backward, default=xla_chunks.backward),
)


def selective_scan(u, dt, A, B, C, D, z, dt_bias, order, initial_state, scan=_by_platform):
    """The contract in `api`."""
    acc = initial_state.dtype
    visit = Visit.along(order, u.shape[1])
    state = initial_state.reshape(u.shape[0], visit.segments, *A.shape)
    state = jnp.transpose(state, (1, 0, 3, 2))  # (segments, b, n, d)
    y, state = scan(visit, u, dt, A.T.astype(acc), B, C, D.astype(acc), z, dt_bias.astype(acc), state)
    return y, jnp.transpose(state, (1, 0, 3, 2)).reshape(initial_state.shape)

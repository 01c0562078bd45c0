"""The selective scan in plain XLA: token by token within checkpointed chunks."""

import jax
import jax.numpy as jnp
from jax import lax

from zigma_kernels.visiting import enter, leave

CHUNK = 16


def selective_scan(u, dt, A, B, C, D, z, dt_bias, order, initial_state):
    """The contract in `api`."""
    acc = initial_state.dtype
    A, D, dt_bias = A.T.astype(acc), D.astype(acc), dt_bias.astype(acc)
    length = enter(u, order).shape[1]
    chunk = min(CHUNK, length)
    pad = -length % chunk

    def token(h, inputs):  # the state as (b, n, d): channels innermost
        u, delta, B, C = (x.astype(acc) for x in inputs)
        h = jnp.exp(delta[:, None, :] * A) * h + (delta * u)[:, None, :] * B[:, :, None]
        return h, jnp.sum(h * C[:, :, None], axis=1) + D * u

    @jax.checkpoint
    def tokens(h, inputs):
        return lax.scan(token, h, inputs, unroll=4)

    delta = jax.nn.softplus(dt.astype(acc) + dt_bias)

    def chunks(x):  # (b, L, ...) -> (chunks, chunk, b, ...); a step of size 0 leaves the state as it is
        x = jnp.moveaxis(enter(x, order), 1, 0)
        x = jnp.pad(x, [(0, pad), (0, 0), (0, 0)])
        return x.reshape(-1, chunk, *x.shape[1:])

    h = jnp.swapaxes(initial_state.reshape(-1, *A.T.shape), 1, 2)
    h, y = lax.scan(tokens, h, tuple(chunks(x) for x in (u, delta, B, C)))
    y = y.reshape(-1, *y.shape[2:])[:length]
    y = leave(jnp.moveaxis(y, 0, 1), order)
    y = y if z is None else y * jax.nn.silu(z.astype(acc))
    return y.astype(u.dtype), jnp.swapaxes(h, 1, 2).reshape(initial_state.shape)

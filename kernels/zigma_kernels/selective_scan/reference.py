"""The selective scan token by token, as its equations read, left to autodiff: what the others are held to."""

import jax
import jax.numpy as jnp
from jax import lax

from zigma_kernels.visiting import Visit


def selective_scan(u, dt, A, B, C, D, z, dt_bias, order, initial_state):
    """The contract in `api`. In reverse, autodiff keeps every state: memory grows as b * L * d * n."""
    visit = Visit.along(order, u.shape[1], forward_mode=True)
    acc = initial_state.dtype
    A, D, dt_bias = A.astype(acc), D.astype(acc), dt_bias.astype(acc)

    def token(h, inputs):
        u, dt, B, C = (x.astype(acc) for x in inputs)  # (b, d), (b, d), (b, n), (b, n)
        delta = jax.nn.softplus(dt + dt_bias)[:, :, None]
        h = jnp.exp(delta * A) * h + delta * u[:, :, None] * B[:, None, :]
        return h, jnp.sum(h * C[:, None, :], axis=-1) + D * u

    tokens = [jnp.moveaxis(visit.enter(x), 1, 0) for x in (u, dt, B, C)]  # (L, b, ...)
    h, y = lax.scan(token, initial_state.reshape(-1, *A.shape), tuple(tokens))
    y = visit.leave(jnp.moveaxis(y, 0, 1))
    y = y if z is None else y * jax.nn.silu(z.astype(acc))
    return y.astype(u.dtype), h.reshape(initial_state.shape)

"""SSD token by token, as its equations read, left to autodiff: what the chunked form is held to."""

import jax
import jax.numpy as jnp
from jax import lax

from zigma_kernels.visiting import Visit


def ssd(u, dt, A, B, C, D, dt_bias, order, initial_state):
    """The contract in `api`. In reverse, autodiff keeps every state: memory grows as b * L * heads * size * n."""
    visit = Visit.along(order, u.shape[1], forward_mode=True)
    acc = initial_state.dtype
    A, D, dt_bias = A.astype(acc), D.astype(acc), dt_bias.astype(acc)

    def token(h, inputs):
        u, dt, B, C = (x.astype(acc) for x in inputs)  # (b, heads, size), (b, heads), (b, n), (b, n)
        delta = jax.nn.softplus(dt + dt_bias)
        h = jnp.exp(delta * A)[..., None, None] * h + (delta[..., None] * u)[..., None] * B[:, None, None, :]
        return h, jnp.einsum("bhpn,bn->bhp", h, C, precision="highest") + D[:, None] * u

    tokens = [jnp.moveaxis(visit.enter(x), 1, 0) for x in (u, dt, B, C)]  # (L, b, ...)
    h, y = lax.scan(token, initial_state.reshape(-1, *initial_state.shape[-3:]), tuple(tokens))
    return visit.leave(jnp.moveaxis(y, 0, 1)).astype(u.dtype), h.reshape(initial_state.shape)

"""SSD in chunks: inside a chunk it is a masked product of matrices, between chunks a recurrence of few steps.

With a_t = delta_t A and its running sum s inside a chunk, the state's part in token i that came in at token j ≤ i has
decayed by exp(s_i - s_j). Source: Dao & Gu, "Transformers are SSMs" (arXiv 2405.21060), section 6.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from zigma_kernels.visiting import Visit

CHUNK = 64  # tokens; the products inside a chunk grow with it, the number of states kept falls


def ssd(u, dt, A, B, C, D, dt_bias, order, initial_state):
    """The contract in `api`."""
    visit = Visit.along(order, u.shape[1])
    state = initial_state.reshape(-1, *initial_state.shape[-3:])
    u, dt, B, C = (visit.enter(x) for x in (u, dt, B, C))
    y, state = _ssd(u, dt, A, B, C, D, dt_bias, state)
    return visit.leave(y), state.reshape(initial_state.shape)


@functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
def _ssd(u, dt, A, B, C, D, dt_bias, state):
    """Of tokens as visited. The backward pass keeps the arguments alone, and computes the decays again."""
    acc, (_, length, _, _) = state.dtype, u.shape
    delta = jax.nn.softplus(dt.astype(acc) + dt_bias.astype(acc))
    chunk = min(CHUNK, length)
    padding = -length % chunk  # tokens at the end that neither decay the state (delta = 0) nor add to it

    def chunks(x):
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], -1, chunk, *x.shape[2:])

    product = functools.partial(jnp.einsum, preferred_element_type=acc)
    u_, B, C, delta = chunks(u), chunks(B), chunks(C), chunks(delta)
    sums = jnp.cumsum(delta * A.astype(acc), axis=2)  # (b, chunks, chunk, heads)
    added = (delta[..., None] * u_).astype(u.dtype)

    # Inside a chunk: token i reads what tokens j ≤ i have added.
    later = jnp.tril(jnp.ones((chunk, chunk), bool))[None, None, :, :, None]
    between = jnp.where(later, sums[:, :, :, None] - sums[:, :, None, :], -jnp.inf)  # masked first: exp could overflow
    weights = product("bcin,bcjn->bcij", C, B)[..., None] * jnp.exp(between)
    y = product("bcijh,bcjhp->bcihp", weights.astype(u.dtype), added)

    # Between chunks: what each adds to the state by its end, and the state that each begins with.
    to_end = jnp.exp(sums[:, :, -1:] - sums)
    gains = product("bcjn,bcjhp->bchpn", B, (to_end[..., None] * added).astype(u.dtype))

    def step(state, inputs):
        gain, decay = inputs
        return decay[..., None, None] * state + gain, state

    decays = jnp.exp(sums[:, :, -1])
    state, before = lax.scan(step, state, (jnp.moveaxis(gains, 1, 0), jnp.moveaxis(decays, 1, 0)))
    read = product("bcin,cbhpn->bcihp", C, before.astype(u.dtype))
    y = y + jnp.exp(sums)[..., None] * read + D.astype(acc)[:, None] * u_
    return y.reshape(u.shape[0], -1, *u.shape[2:])[:, :length].astype(u.dtype), state

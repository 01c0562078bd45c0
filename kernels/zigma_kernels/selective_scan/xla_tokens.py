"""Chunks of the selective scan token by token, in place and in any visiting order: the form for CPUs.

Rows are read from, and written to, arrays in raster order at the index of the visited token, so an order
costs nothing and nothing is transposed or copied. Sums over the n states are written out, which XLA for CPUs
turns into faster code than a reduction over a middle axis.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax

CHUNK = 16  # tokens whose states the backward pass holds at once


def forward(visit, u, dt, A, B, C, D, z, dt_bias, state):
    """Returns (y, final state, states at the chunks' starts).

    u, dt, z (b, L, d); A (n, d); B, C (b, L, n); D, dt_bias (d,); state (segments, b, n, d);
    starts (chunks, b, n, d).
    """
    chunks, bounds = _chunks(visit, u.shape[1])

    def token(i, carry):
        h, y = carry
        t = visit.tokens[i]
        u_t, dt_t, B_t, C_t = (_row(x, t, h.dtype) for x in (u, dt, B, C))
        h = _step(h, A, jax.nn.softplus(dt_t + dt_bias), u_t, B_t)
        y_t = _sum_states(h, C_t[:, :, None]) + D * u_t
        y_t = y_t if z is None else y_t * jax.nn.silu(_row(z, t, h.dtype))
        return h, _put_row(y, y_t, t)

    def chunk(k, carry):
        h, y, final, starts = carry
        segment, start, stop, opens, _ = bounds(k)
        h = jnp.where(opens, state[segment], h)
        starts = _put(starts, h, k)
        h, y = lax.fori_loop(start, stop, token, (h, y))
        return h, y, _put(final, h, segment), starts

    starts = lax.full_like(state, 0, shape=(chunks, *state.shape[1:]))
    carry = (state[0], jnp.zeros_like(u), jnp.zeros_like(state), starts)
    return lax.fori_loop(0, chunks, chunk, carry)[1:]


def backward(visit, starts, dy, dfinal, u, dt, A, B, C, D, z, dt_bias, state):
    """Returns the gradients of u, dt, A, B, C, D, z, dt_bias, state."""
    chunks, bounds = _chunks(visit, u.shape[1])
    acc = state.dtype

    def recompute(i, carry):
        start, past = carry
        t = visit.tokens[i]
        u_t, dt_t, B_t = (_row(x, t, acc) for x in (u, dt, B))
        h = _step(past[i - start], A, jax.nn.softplus(dt_t + dt_bias), u_t, B_t)
        return start, _put(past, h, i - start + 1)

    def adjoint(j, carry):
        start, stop, past, g, dA, dD, ddt_bias, rows = carry
        i = start + stop - 1 - j
        t = visit.tokens[i]
        u_t, dt_t, B_t, C_t, dy_t = (_row(x, t, acc) for x in (u, dt, B, C, dy))
        before, h = past[i - start], past[i - start + 1]
        x_t = dt_t + dt_bias
        delta = jax.nn.softplus(x_t)
        du, ddt, dB, dC, dz = rows

        if z is not None:
            z_t = _row(z, t, acc)
            gate = jax.nn.sigmoid(z_t)
            y_t = _sum_states(h, C_t[:, :, None]) + D * u_t
            dz = _put_row(dz, dy_t * y_t * gate * (1 + z_t * (1 - gate)), t)
            dy_t = dy_t * z_t * gate
        dh = g + C_t[:, :, None] * dy_t[:, None, :]
        dC = _put_row(dC, jnp.sum(h * dy_t[:, None, :], axis=2), t)
        dB = _put_row(dB, jnp.sum(dh * (delta * u_t)[:, None, :], axis=2), t)
        dx_t = _sum_states(dh, B_t[:, :, None])
        g = jnp.exp(delta[:, None, :] * A) * dh
        p = g * before
        ddt_t = (_sum_states(p, A[None]) + u_t * dx_t) * jax.nn.sigmoid(x_t)
        du = _put_row(du, delta * dx_t + D * dy_t, t)
        ddt = _put_row(ddt, ddt_t, t)
        dA, dD, ddt_bias = dA + delta[:, None, :] * p, dD + dy_t * u_t, ddt_bias + ddt_t
        return start, stop, past, g, dA, dD, ddt_bias, (du, ddt, dB, dC, dz)

    def chunk(j, carry):
        past, g, dstate, *sums, rows = carry
        k = chunks - 1 - j
        segment, start, stop, _, closes = bounds(k)
        past = lax.fori_loop(start, stop, recompute, (start, _put(past, starts[k], 0)))[1]
        g = jnp.where(closes, dfinal[segment], g)
        carry = (start, stop, past, g, *sums, rows)
        _, _, past, g, *sums, rows = lax.fori_loop(start, stop, adjoint, carry)
        return past, g, _put(dstate, g, segment), *sums, rows

    like = functools.partial(lax.full_like, state, 0)
    b, n, d = state.shape[1:]
    sums = like(shape=(b, n, d)), like(shape=(b, d)), like(shape=(b, d))
    rows = tuple(None if x is None else jnp.zeros_like(x) for x in (u, dt, B, C, z))
    carry = (like(shape=(CHUNK + 1, b, n, d)), dfinal[0], jnp.zeros_like(state), *sums, rows)
    _, _, dstate, dA, dD, ddt_bias, (du, ddt, dB, dC, dz) = lax.fori_loop(0, chunks, chunk, carry)
    return du, ddt, dA.sum(0), dB, dC, dD.sum(0), dz, ddt_bias.sum(0), dstate


def _chunks(visit, length):
    """Number of chunks, and a function from a chunk's number to its (segment, start, stop, opens, closes).

    It visits tokens start … stop - 1; `opens` and `closes`: whether it is its segment's first, or last.
    """
    length //= visit.segments
    each = -(-length // CHUNK)

    def bounds(k):
        segment, c = k // each, k % each
        start = segment * length + c * CHUNK
        return segment, start, jnp.minimum(start + CHUNK, (segment + 1) * length), c == 0, c == each - 1

    return visit.segments * each, bounds


def _step(h, A, delta, u, B):
    return jnp.exp(delta[:, None, :] * A) * h + (delta * u)[:, None, :] * B[:, :, None]


def _sum_states(h, C):
    """sum_n h C: (b, n, d), (b or 1, n, d or 1) -> (b, d)"""
    return functools.reduce(operator.add, (h[:, i] * C[:, i] for i in range(h.shape[1])))


def _row(x, t, dtype):
    return lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False).astype(dtype)


def _put_row(x, row, t):
    return lax.dynamic_update_index_in_dim(x, row.astype(x.dtype), t, axis=1)


def _put(x, value, i):
    return lax.dynamic_update_index_in_dim(x, value, i, axis=0)

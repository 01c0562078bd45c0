"""Chunks of the selective scan by associative scans, for GPUs and TPUs. Signatures as in `xla_tokens`.

Sums over states and channels are sums of products, not dot products, which would round to TF32 or bfloat16
there.
"""

import jax
import jax.numpy as jnp
from jax import lax

from zigma_kernels.selective_scan.xla_tokens import CHUNK


def forward(visit, u, dt, A, B, C, D, z, dt_bias, state):
    acc = state.dtype

    def chunk(start, inputs):
        u, delta, B, C, z = inputs
        h = _states(_decay(delta, A), _input(delta, u, B), start)
        y = _output(h, C, u, D)
        y = y if z is None else y * jax.nn.silu(z)
        return h[:, -1], (y, start)

    inputs = _inputs(visit, acc, u, dt, B, C, z, dt_bias)
    h, (y, starts) = lax.scan(chunk, _fold(visit, state), inputs)
    y = _leave(visit, y, u.shape[1]).astype(u.dtype)
    return y, _unfold(visit, h), starts.reshape(-1, *state.shape[1:])


def backward(visit, starts, dy, dfinal, u, dt, A, B, C, D, z, dt_bias, state):
    acc = state.dtype

    def chunk(carry, inputs):
        g, dA, dD = carry
        start, dy, (u, delta, B, C, z) = inputs
        a, x = _decay(delta, A), _input(delta, u, B)
        h = _states(a, x, start)
        dz = None
        if z is not None:
            gate = jax.nn.sigmoid(z)
            dz = dy * _output(h, C, u, D) * gate * (1 + z * (1 - gate))
            dy = dy * z * gate
        dh = _adjoint_states(a, C[..., :, None] * dy[..., None, :], g)
        before = jnp.concatenate([start[:, None], h[:, :-1]], axis=1)
        da = a * dh * before
        dx = jnp.sum(dh * B[..., None], axis=2)
        ddelta = jnp.sum(da * A, axis=2) + u * dx
        dB = jnp.sum(dh * (delta * u)[:, :, None, :], axis=3)
        dC = jnp.sum(h * dy[:, :, None, :], axis=3)
        dA += jnp.sum(da * delta[:, :, None, :], axis=(0, 1))
        dD += jnp.sum(dy * u, axis=(0, 1))
        return (a[:, 0] * dh[:, 0], dA, dD), (delta * dx + D * dy, ddelta, dB, dC, dz)

    starts = starts.reshape(-1, visit.segments * u.shape[0], *state.shape[2:])
    inputs = (starts, _chunks(visit, dy.astype(acc)), _inputs(visit, acc, u, dt, B, C, z, dt_bias))
    carry = (_fold(visit, dfinal), jnp.zeros_like(A), jnp.zeros_like(D))
    (g, dA, dD), rows = lax.scan(chunk, carry, inputs, reverse=True)
    du, ddelta, dB, dC, dz = jax.tree.map(lambda x: _leave(visit, x, u.shape[1]), rows)
    ddt = ddelta * jax.nn.sigmoid(dt.astype(acc) + dt_bias)
    gradients = du, ddt, dA, dB, dC, dD, dz, ddt.sum((0, 1)), _unfold(visit, g)
    return jax.tree.map(lambda x, of: x.astype(of.dtype), gradients, (u, dt, A, B, C, D, z, dt_bias, state))


def _states(a, x, h):
    """h_t = a_t h_{t-1} + x_t along axis 1 from the state h: (b, t, n, d) twice, (b, n, d)."""
    a, x = lax.associative_scan(_then, (a, x), axis=1)
    return x + a * h[:, None]


def _adjoint_states(a, x, g):
    """l_t = x_t + a_{t+1} l_{t+1} along axis 1, with g in place of the last token's a_{t+1} l_{t+1}."""
    x = x.at[:, -1].add(g)
    a = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], axis=1)
    return lax.associative_scan(_then, (a, x), axis=1, reverse=True)[1]


def _then(first, second):
    return first[0] * second[0], second[0] * first[1] + second[1]


def _decay(delta, A):
    return jnp.exp(delta[:, :, None, :] * A)


def _input(delta, u, B):
    return (delta * u)[:, :, None, :] * B[:, :, :, None]


def _output(h, C, u, D):
    return jnp.sum(h * C[..., None], axis=2) + D * u


def _inputs(visit, acc, u, dt, B, C, z, dt_bias):
    delta = jax.nn.softplus(dt.astype(acc) + dt_bias)
    return tuple(None if x is None else _chunks(visit, x.astype(acc)) for x in (u, delta, B, C, z))


def _chunks(visit, x):
    """(b, L, k) -> (chunks, b * segments, chunk, k), padded with steps of size 0."""
    x = visit.enter(x)
    chunk = min(CHUNK, x.shape[1])
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk), (0, 0)])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, x.shape[2]), 1, 0)


def _leave(visit, x, length):
    """The inverse of `_chunks`."""
    x = jnp.moveaxis(x, 0, 1)
    x = x.reshape(x.shape[0], -1, x.shape[3])[:, : length // visit.segments]
    return visit.leave(x)


def _fold(visit, state):
    """(segments, b, n, d) -> (b * segments, n, d)"""
    return jnp.swapaxes(state, 0, 1).reshape(-1, *state.shape[2:])


def _unfold(visit, state):
    return jnp.swapaxes(state.reshape(-1, visit.segments, *state.shape[1:]), 0, 1)

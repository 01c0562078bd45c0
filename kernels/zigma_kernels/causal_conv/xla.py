"""The causal convolution as shifted multiply-adds along the visiting order.

Its backward pass is written by hand: it keeps the input alone and computes the pre-activation again, where autodiff
would keep several arrays of the input's size in float32.
"""

import functools

import jax
import jax.numpy as jnp

from zigma_kernels.visiting import Visit


def causal_conv(x, weight, bias, order, activation, initial_state):
    """The contract in `api`."""
    visit = Visit.along(order, x.shape[1])
    past = initial_state.reshape(-1, *initial_state.shape[-2:])
    return conv(activation, visit, x, weight, bias, past)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def conv(activation, visit, x, weight, bias, past):
    """past (b * segments, width - 1, d)."""
    y = _weighted(weight, _window(visit, x, past)) + bias
    y = jax.nn.silu(y) if activation == "silu" else y
    return visit.leave(y.astype(x.dtype))


def _conv_fwd(activation, *arrays):
    return conv(activation, *arrays), arrays


def _conv_bwd(activation, arrays, dy):
    visit, x, weight, bias, past = arrays
    window, n = _window(visit, x, past), past.shape[1]
    wide = x.dtype == jnp.promote_types(x.dtype, jnp.float32)
    if wide and visit.kind != "raster":
        window = jax.lax.optimization_barrier(window)  # gathered once, not for every tap
    pre = _weighted(weight, window) + bias
    dpre = visit.enter(dy).astype(pre.dtype)
    if activation == "silu":
        gate = jax.nn.sigmoid(pre)
        dpre = dpre * gate * (1 + pre * (1 - gate))
    if not wide:  # written once, in few bytes: every tap reads it
        dpre = jax.lax.optimization_barrier(dpre.astype(x.dtype))
    acc, length = pre.dtype, pre.shape[1]
    dweight = jnp.stack([jnp.sum(dpre.astype(acc) * window[:, k : k + length], axis=(0, 1)) for k in range(n + 1)])
    dbias = jnp.sum(dpre, axis=(0, 1), dtype=acc)
    dwindow = _weighted(weight[::-1], jnp.pad(dpre, [(0, 0), (n, n), (0, 0)]))
    gradients = visit.leave(dwindow[:, n:].astype(x.dtype)), dweight, dbias, dwindow[:, :n]
    return None, *(g.astype(a.dtype) for g, a in zip(gradients, (x, weight, bias, past), strict=True))


conv.defvjp(_conv_fwd, _conv_bwd)


def _window(visit, x, past):
    """What the taps see, (b * segments, width - 1 + length, d), as visited."""
    return jnp.concatenate([past, visit.enter(x)], axis=1)


def _weighted(weight, window):
    """The sum of the window's shifts by the taps, from its start on; in float32, or float64 if anything is."""
    length = window.shape[1] - len(weight) + 1
    weight = weight.astype(jnp.promote_types(jnp.result_type(weight, window), jnp.float32))
    return functools.reduce(jnp.add, [weight[k] * window[:, k : k + length] for k in range(len(weight))])

"""The causal convolution token by token, as its equation reads; gradients by autodiff."""

import jax
import jax.numpy as jnp
from jax import lax

from zigma_kernels.visiting import Visit


def causal_conv(x, weight, bias, order, activation, initial_state):
    """The contract in `api`."""
    visit = Visit.along(order, x.shape[1], forward_mode=True)
    acc = jnp.promote_types(jnp.result_type(x, weight, bias), jnp.float32)
    weight, bias = weight.astype(acc), bias.astype(acc)

    def token(window, x):  # window: the last `width` tokens, (width, b, d)
        window = jnp.concatenate([window[1:], x[None]])
        return window, jnp.sum(weight[:, None, :] * window, axis=0) + bias

    tokens = jnp.moveaxis(visit.enter(x), 1, 0).astype(acc)  # (L, b, d)
    past = initial_state.reshape(-1, *initial_state.shape[-2:]).astype(acc)
    window = jnp.pad(jnp.moveaxis(past, 1, 0), [(1, 0), (0, 0), (0, 0)])
    y = lax.scan(token, window, tokens)[1]
    y = jax.nn.silu(y) if activation == "silu" else y
    return visit.leave(jnp.moveaxis(y, 0, 1)).astype(x.dtype)

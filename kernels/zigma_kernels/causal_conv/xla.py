"""The causal convolution as shifted multiply-adds along the visiting order.

Autodiff serves: the transpose of a shift is a shift, and XLA fuses the few terms of each gradient into one
pass.
"""

import jax
import jax.numpy as jnp

from zigma_kernels.visiting import Visit


def causal_conv(x, weight, bias, order, activation, initial_state):
    """The contract in `api`."""
    visit = Visit.along(order, x.shape[1])
    acc = jnp.promote_types(jnp.result_type(x, weight, bias), jnp.float32)
    visited = visit.enter(x)
    length, width = visited.shape[1], len(weight)
    past = initial_state.reshape(-1, *initial_state.shape[-2:])
    window = jnp.concatenate([past, visited], axis=1)
    y = bias.astype(acc)
    for k in range(width):
        y = y + weight[k].astype(acc) * window[:, k : k + length].astype(acc)
    y = jax.nn.silu(y) if activation == "silu" else y
    return visit.leave(y.astype(x.dtype))

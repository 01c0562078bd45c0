"""Visiting orders for ops that read a sequence token by token: raster arrays in, raster arrays out.

A sequence op takes `order`: None (raster), a `GridPath`, or an int32 permutation of shape (L,) whose entry i is the
token visited i-th. Ops that cannot follow an order while reading use `enter` and `leave` at their two ends.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zigma_kernels.grid_path import GridPath

type Order = GridPath | np.ndarray | Array | None


def check_order(order: Order, length: int) -> Order:
    """Validates `order` for sequences of `length` tokens and returns it, a plain raster order as None.

    A numpy permutation is checked entry by entry; a jax array, which may be traced, by shape and dtype alone.

    Raises:
        ValueError: the order's length is not `length`, or it is not a permutation.
        TypeError: it is neither None, a GridPath, nor a one-dimensional integer array.
    """
    if order is None:
        return None
    if isinstance(order, GridPath):
        if order.length != length:
            raise ValueError(f"order: {order} visits {order.length} tokens, the arrays hold {length}")
        return None if order.is_raster else order
    if not isinstance(order, np.ndarray | Array):
        raise TypeError(f"order: expected None, a GridPath or an integer array, got {type(order).__name__}")
    if order.shape != (length,):
        raise ValueError(f"order: expected shape ({length},), one entry a token, got {order.shape}")
    if not jnp.issubdtype(order.dtype, jnp.integer):
        raise TypeError(f"order: expected an integer array, got dtype {order.dtype}")
    if isinstance(order, Array):
        return order
    if not np.array_equal(np.sort(order), np.arange(length)):
        raise ValueError(f"order: not a permutation of 0..{length - 1}")
    return None if np.array_equal(order, np.arange(length)) else order.astype(np.int32)


def num_segments(order: Order) -> int:
    """Number of independent sequences, of equal length, that the order visits one after the other."""
    return order.segments if isinstance(order, GridPath) else 1


def enter(x: Array, order: Order) -> Array:
    """(b, L, ...) in raster order -> (b * segments, L / segments, ...) as visited."""
    x = _permute(x, order, inverse=False)
    segments = num_segments(order)
    return x if segments == 1 else x.reshape(-1, x.shape[1] // segments, *x.shape[2:])


def leave(y: Array, order: Order) -> Array:
    """(b * segments, L / segments, ...) as visited -> (b, L, ...) in raster order."""
    segments = num_segments(order)
    y = y if segments == 1 else y.reshape(-1, y.shape[1] * segments, *y.shape[2:])
    return _permute(y, order, inverse=True)


def _permute(x: Array, order: Order, inverse: bool) -> Array:
    if order is None:
        return x
    if isinstance(order, Array):
        there, back = order, jnp.argsort(order)
    else:
        there = order.permutation if isinstance(order, GridPath) else order
        if np.array_equal(there, np.arange(len(there))):
            return x
        if np.array_equal(there, np.arange(len(there))[::-1]):
            return jnp.flip(x, axis=1)
        there, back = jnp.asarray(there), jnp.asarray(np.argsort(there).astype(np.int32))
    return permute_tokens(x, back, there) if inverse else permute_tokens(x, there, back)


@jax.custom_vjp
def permute_tokens(x: Array, order: Array, inverse: Array) -> Array:
    """y[:, i] = x[:, order[i]]. Its gradient gathers by `inverse`: a permutation needs no scatter-add."""
    del inverse
    return x.at[:, order].get(mode="promise_in_bounds", unique_indices=True)


def _permute_fwd(x, order, inverse):
    return permute_tokens(x, order, inverse), (order, inverse)


def _permute_bwd(residuals, dy):
    order, inverse = residuals
    return permute_tokens(dy, inverse, order), None, None


permute_tokens.defvjp(_permute_fwd, _permute_bwd)

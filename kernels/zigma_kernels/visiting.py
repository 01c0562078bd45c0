"""Visiting orders for ops that read a sequence token by token: raster arrays in, raster arrays out.

A sequence op takes `order`: None (raster), a `GridPath`, an int32 permutation of shape (L,) whose entry i is the token
visited i-th, or a `Visit`, which is an order as data: one program serves several. `check_order` validates it and
`Visit` follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zigma_kernels.grid_path import GridPath


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Visit:
    """A checked order made ready to be followed; a pytree, so that a traced order may pass through
    custom_vjp.

    Attributes:
        tokens: int32 (L,), the raster index of the token visited i-th.
        ranks: int32 (L,), its inverse.
        segments: number of independent sequences, one after the other in `tokens`.
        kind: "raster" (as they lie), "reversed" (from the last to the first), "permuted", or "indexed",
            which is "permuted" left to autodiff: slower in reverse, but open to forward mode.
    """

    tokens: Any  # arrays, but JAX fills pytrees with placeholders too
    ranks: Any
    segments: int = field(metadata={"static": True})
    kind: str = field(metadata={"static": True})

    @classmethod
    def along(cls, order: "Order", length: int, forward_mode: bool = False) -> "Visit":
        """Follows `order`, as returned by `check_order`, over `length` tokens."""
        kind = "indexed" if forward_mode else "permuted"
        if isinstance(order, Visit):
            return replace(order, kind=kind)
        if isinstance(order, Array):
            return cls(order, jnp.argsort(order), 1, kind)
        raster = np.arange(length, dtype=np.int32)
        tokens = raster if order is None else order.permutation if isinstance(order, GridPath) else order
        ranks = np.argsort(tokens).astype(np.int32)
        if np.array_equal(tokens, raster):
            kind = "raster"
        elif np.array_equal(tokens, raster[::-1]):
            kind = "reversed"
        return cls(jnp.asarray(tokens), jnp.asarray(ranks), num_segments(order), kind)

    @classmethod
    def table(cls, paths: Sequence[GridPath]) -> "Visit":
        """Orders of as many segments each, one after the other: (k, L) in place of (L,). `table[i]` is the i-th."""
        (segments,) = {path.segments for path in paths}
        tokens, ranks = (np.stack([getattr(path, name) for path in paths]) for name in ("permutation", "inverse"))
        return cls(jnp.asarray(tokens), jnp.asarray(ranks), segments, "permuted")

    def __getitem__(self, index: int | Array) -> "Visit":
        """One order of a table; `index` may be traced."""
        return replace(self, tokens=self.tokens[index], ranks=self.ranks[index])

    def enter(self, x: Array) -> Array:
        """(b, L, ...) in raster order -> (b * segments, L / segments, ...) as visited."""
        x = self._permute(x, self.tokens, self.ranks)
        return x.reshape(x.shape[0] * self.segments, x.shape[1] // self.segments, *x.shape[2:])

    def leave(self, y: Array) -> Array:
        """(b * segments, L / segments, ...) as visited -> (b, L, ...) in raster order."""
        y = y.reshape(y.shape[0] // self.segments, y.shape[1] * self.segments, *y.shape[2:])
        return self._permute(y, self.ranks, self.tokens)

    def _permute(self, x, order, inverse):
        match self.kind:
            case "raster":
                return x
            case "reversed":
                return jnp.flip(x, axis=1)
            case "indexed":
                return x[:, order]
            case _:
                return permute_tokens(x, order, inverse)


type Order = GridPath | np.ndarray | Array | Visit | None


def check_order(order: Order, length: int) -> Order:
    """Validates `order` for sequences of `length` tokens and returns it, a plain raster order as None.

    A numpy permutation is checked entry by entry; a jax array, which may be traced, by shape and dtype alone.

    Raises:
        ValueError: the order is for another number of tokens, or is no permutation.
        TypeError: it is neither None, a GridPath, nor an integer array.
    """
    if order is None:
        return None
    if isinstance(order, GridPath):
        if order.length != length:
            raise ValueError(f"order: {order} visits {order.length} tokens, but the arrays hold {length}")
        return None if order.is_raster else order
    if isinstance(order, Visit):
        if order.tokens.shape != (length,):
            raise ValueError(f"order: a Visit of {order.tokens.shape} tokens, but the arrays hold {length}")
        return order
    if not isinstance(order, np.ndarray | Array):
        raise TypeError(f"order: expected None, a GridPath, an integer array or a Visit, got {type(order).__name__}")
    if not jnp.issubdtype(order.dtype, jnp.integer):
        raise TypeError(f"order: expected an array of integers, got dtype {order.dtype}")
    if order.shape != (length,):
        raise ValueError(f"order: expected shape ({length},), one entry a token, got {order.shape}")
    if isinstance(order, Array):
        return order
    if not np.array_equal(np.sort(order), np.arange(length)):
        raise ValueError(f"order: not a permutation of 0 … {length - 1}: {order}")
    return None if np.array_equal(order, np.arange(length)) else order.astype(np.int32)


def num_segments(order: Order) -> int:
    """Number of independent sequences, of equal length, that the order visits one after the other."""
    return order.segments if isinstance(order, GridPath | Visit) else 1


@jax.custom_vjp
def permute_tokens(x: Array, order: Array, inverse: Array) -> Array:
    """y[:, i] = x[:, order[i]]. Its gradient gathers by `inverse`: a permutation needs no scatter-add."""
    del inverse
    return x.at[:, order].get(mode="promise_in_bounds", unique_indices=True)


def _permute_fwd(x, order, inverse):
    return permute_tokens(x, order, inverse), (order, inverse)


def _permute_bwd(orders, dy):
    order, inverse = orders
    return permute_tokens(dy, inverse, order), None, None


permute_tokens.defvjp(_permute_fwd, _permute_bwd)

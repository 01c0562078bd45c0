"""What every op does with its `implementation` argument, and with its operands under shard_map."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array, lax

type Implementation = Callable[..., Any]


def dispatch(op: str, implementations: Mapping[str, Implementation], name: str | None, *args: Any) -> Any:
    """Calls the implementation called `name`, or with None the first that does not raise NotImplementedError.

    Raises:
        ValueError: no implementation has that name.
        NotImplementedError: the named implementation, or every one, does not support the call.
    """
    if name is not None:
        if name not in implementations:
            raise ValueError(f"{op}: unknown implementation {name!r}; known: {', '.join(implementations)}")
        return implementations[name](*args)
    reasons = []
    for candidate, implementation in implementations.items():
        try:
            return implementation(*args)
        except NotImplementedError as reason:
            reasons.append(f"{candidate}: {reason}")
    raise NotImplementedError(f"{op}: no implementation supports this call. " + "; ".join(reasons))


def vary_alike[Arrays](arrays: Arrays) -> Arrays:
    """Under shard_map, marks all arrays of a pytree as varying over the mesh axes that any varies over.

    A scan's carry needs one type throughout, and the transpose of this mark is the sum over shards that a
    parameter's gradient needs. Outside shard_map it returns the arrays as they are.
    """
    axes = frozenset().union(*map(_varying, jax.tree.leaves(arrays)))

    def mark(x: Array) -> Array:
        missing = tuple(sorted(axes - _varying(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, arrays)


def _varying(x: Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying

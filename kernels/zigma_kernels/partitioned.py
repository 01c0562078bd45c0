"""How an op composes with meshes of devices."""

import jax
from jax import Array, lax


def vary_alike[Arrays](arrays: Arrays) -> Arrays:
    """Under shard_map, marks all arrays of a pytree as varying over the mesh axes that any varies over.

    A scan's carry needs one type throughout, and the transpose of this mark is the sum over shards that a
    parameter's gradient needs. Outside shard_map it returns the arrays as they are.
    """
    return mark_varying(arrays, _varying_of(arrays))


def mark_varying[Arrays](arrays: Arrays, axes: frozenset[str]) -> Arrays:
    """Under shard_map, marks all arrays of a pytree as varying over these mesh axes too."""

    def mark(x: Array) -> Array:
        missing = tuple(sorted(axes - _varying(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, arrays)


def _varying_of(arrays) -> frozenset[str]:
    return frozenset().union(*map(_varying, jax.tree.leaves(arrays)))


def _varying(x: Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying

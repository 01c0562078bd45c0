"""How an op composes with vmap and with meshes of devices.

A compiled kernel is opaque: XLA's partitioner would gather its operands on every device, and there is no rule
to batch it. `opaque_op` makes of a kernel's forward and backward pass an op that is differentiable, is divided
over devices as its operands are, and can be mapped by vmap. No mesh need be known when it is traced.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.core import eval_jaxpr
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

type Axes = tuple[str, ...]  # names of an array's axes

BATCH, CHANNEL = "b", "d"  # along these an op's work may be divided


def opaque_op(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *,
    arguments: str,
    results: str,
    saved: str = "",
    alone: Callable[..., Any] | None = None,
    channels: int = 1,
    name: str = "",
) -> Callable[..., Any]:
    """The op (visit, *arguments) -> results of a kernel's two passes.

    `forward(visit, *arguments)` returns the tuple (*results, *saved); `backward(visit, *saved, *gradients of the
    results, *arguments)` the tuple of the arguments' gradients. Both see local arrays: on each device a part of
    the batch and of the channels, and the samples of all calls that vmap maps as one batch. What depends on the
    sizes of these two axes is decided inside, no other size of a result may depend on them, and a call that is
    refused (with NotImplementedError) is refused whatever they are: by then it is too late for another choice.

    The axes of the arrays are given by name, one array after the other: ``"b L d, b L n, d"``. Axis ``b`` is the
    batch and ``d`` the channels; other names are free, and those axes are never divided. An argument may be
    None; so is its gradient then. `visit` is a pytree of arrays, never divided, without gradients; None if there
    are none. What is static, the passes know by themselves.

    - The gradient of an argument without b is each sample's own, with b in front: it is summed outside, over
      devices too.
    - A result, or gradient, without d is a sum over the channels at hand; so it is summed over devices.

    Both sums are done in the dtype that the pass returns; then every gradient gets its argument's dtype.

    Args:
        forward, backward: the passes.
        arguments, results: axes of the op's arrays.
        saved: axes of what the forward pass keeps for the backward pass beside the arguments; "" for nothing.
        alone: the forward pass where no backward pass follows, returning the results alone; by default, `forward`.
        channels: the kernel takes multiples of so many channels. Where dividing them would leave a device with
            another number, they are gathered.
        name: `jax.ad_checkpoint.checkpoint_name` of what the forward pass returns and keeps, for remat policies.

    The op has no forward mode and no second derivative. It refuses, with NotImplementedError, to run under a
    shard_map over some of a mesh's axes, where no partitioner could divide it over the others.
    """
    of_arguments, of_results, of_saved = map(_axes, (arguments, results, saved))
    of_gradients = [axes if BATCH in axes else (BATCH, *axes) for axes in of_arguments]
    run_forward = _mappable(forward, [None, *of_arguments], [*of_results, *of_saved], channels)
    run_backward = _mappable(backward, [None, *of_saved, *of_results, *of_arguments], of_gradients, channels)

    run_alone = _mappable(alone, [None, *of_arguments], of_results, channels) if alone else run_forward

    @jax.custom_vjp
    def op(visit, *arrays):
        return run_alone(visit, *arrays)[: len(of_results)]

    def op_fwd(visit, *arrays):
        outputs = run_forward(visit, *arrays)
        outputs = checkpoint_name(outputs, name) if name else outputs
        return outputs[: len(of_results)], (visit, outputs[len(of_results) :], arrays)

    def op_bwd(residuals, gradients):
        visit, saved, arrays = residuals
        found = run_backward(visit, *saved, *gradients, *arrays)

        def finish(gradient, axes, x):
            return None if x is None else (gradient if BATCH in axes else gradient.sum(0)).astype(x.dtype)

        return None, *map(finish, found, of_arguments, arrays)

    op.defvjp(op_fwd, op_bwd)
    return op


def _axes(names: str) -> list[Axes]:
    return [tuple(array.split()) for array in names.split(",")] if names else []


def _mappable(function, of_inputs, of_outputs, channels):
    """`function`, divisible, and under vmap with the mapped axis folded into the batch where that is possible.

    Axes are given for each input and each output; None for an input that is a pytree without named axes.
    """
    foldable = all(BATCH in axes for axes in of_outputs)

    @custom_vmap
    def run(*inputs):
        return _divisible(function, of_inputs, of_outputs, channels, inputs)

    @run.def_vmap
    def run_mapped(size, mapped, *inputs):
        leaves, tree = jax.tree.flatten(inputs)
        flags, axes = jax.tree.leaves(tuple(mapped)), _for_leaves(of_inputs, inputs)
        if foldable and all(BATCH in names for names, flag in zip(axes, flags, strict=True) if flag):
            folded = [_fold(x, names, flag, size) for x, names, flag in zip(leaves, axes, flags, strict=True)]
            outputs = run(*tree.unflatten(folded))
            names = iter(_for_leaves(of_outputs, outputs))
            outputs = jax.tree.map(lambda x: _unfold(x, next(names), size), outputs)
        else:  # parameters of their own for each: one call after the other

            def one(xs):
                xs = iter(xs)
                return run(*tree.unflatten([next(xs) if flag else x for x, flag in zip(leaves, flags, strict=True)]))

            outputs = lax.map(one, [x for x, flag in zip(leaves, flags, strict=True) if flag])
        return outputs, jax.tree.map(lambda _: True, outputs)

    return run


def _for_leaves(axes, trees) -> list[Axes]:
    """The axes of every leaf: those of its tree; made-up names, never divided, where the tree has none."""
    return [
        tuple(f"array{i}x{j}axis{k}" for k in range(jnp.ndim(leaf))) if names is None else names
        for i, (names, tree) in enumerate(zip(axes, trees, strict=True))
        for j, leaf in enumerate(jax.tree.leaves(tree))
    ]


def _fold(x, names, mapped, size):
    """(size, …, b, …) if mapped, else (…, b, …) -> (…, b * size, …): b outermost, as it may be divided."""
    if BATCH not in names:
        return x
    at = names.index(BATCH)
    x = jnp.moveaxis(x, 0, at + 1) if mapped else jnp.repeat(jnp.expand_dims(x, at + 1), size, at + 1)
    return x.reshape(*x.shape[:at], -1, *x.shape[at + 2 :])


def _unfold(x, names, size):
    at = names.index(BATCH)
    return jnp.moveaxis(x.reshape(*x.shape[:at], -1, size, *x.shape[at + 1 :]), at + 1, 0)


def _divisible(function, of_inputs, of_outputs, channels, inputs):
    """`function(*inputs)`, which XLA's partitioner divides over batch and channels as the inputs are divided."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes and set(mesh.manual_axes) != set(mesh.axis_names):
        axes = ", ".join(sorted(set(mesh.axis_names) - set(mesh.manual_axes)))
        raise NotImplementedError(f"under a shard_map that leaves mesh axes ({axes}) to the partitioner")
    leaves, tree = jax.tree.flatten(inputs)

    def flat(*leaves):
        return mark_varying(function(*tree.unflatten(leaves)), _varying(leaves))

    traced, outputs = jax.make_jaxpr(flat, return_shape=True)(*leaves)
    if traced.effects:  # those of Pallas' interpreter, which the partitioner cannot take
        return flat(*leaves)
    # What the function holds as constants has to be an operand of the call. Inside it goes unused: a device's part
    # is traced anew.
    constants = [_fingerprint(traced), *traced.consts]
    in_axes = _for_leaves([None, *of_inputs], [constants, *inputs])
    out_axes = _for_leaves(of_outputs, outputs)

    def whole(constants, *leaves):
        return eval_jaxpr(traced.jaxpr, constants[1:], *leaves)

    def partition(mesh, in_shapes, _):
        divided = _divided(mesh, jax.tree.leaves(in_shapes), in_axes, channels)

        def local(_, *leaves):
            outputs = jax.tree.leaves(flat(*leaves))
            lost = [_lost(names, divided) for names in out_axes]
            return [lax.psum(x, axes) if axes else x for x, axes in zip(outputs, lost, strict=True)]

        def shardings(axes):
            return [NamedSharding(mesh, PartitionSpec(*map(divided.get, names))) for names in axes]

        return mesh, local, shardings(out_axes), jax.tree.unflatten(jax.tree.structure(in_shapes), shardings(in_axes))

    call = custom_partitioning(whole)
    names = dict.fromkeys(name for axes in (*in_axes, *out_axes) for name in axes)  # as they appear
    call.def_partition(
        partition,
        sharding_rule=" -> ".join(", ".join(map(" ".join, axes)) for axes in (in_axes, out_axes)),
        need_replication_factors=tuple(name for name in names if name not in (BATCH, CHANNEL)),
    )
    return jax.tree.unflatten(jax.tree.structure(outputs), call(constants, *leaves))


def _divided(mesh, shapes, axes, channels) -> dict[str, tuple[str, ...]]:
    """The mesh axes over which batch and channels are divided in the largest array that has both."""
    both = [(x, names) for x, names in zip(shapes, axes, strict=True) if {BATCH, CHANNEL} <= set(names)]
    x, names = max(both, key=lambda pair: np.prod(pair[0].shape))
    divided = {}
    for name, multiple in ((BATCH, 1), (CHANNEL, channels)):
        over = x.sharding.spec[names.index(name)] or ()
        over = (over,) if isinstance(over, str) else tuple(over)
        parts = int(np.prod([mesh.shape[axis] for axis in over]))
        if parts > 1 and x.shape[names.index(name)] % (parts * multiple) == 0:
            divided[name] = over
    return divided


def _lost(names, divided) -> tuple[str, ...]:
    """Mesh axes over which an array without a divided axis has to be summed."""
    return tuple(axis for name, over in divided.items() if name not in names for axis in over)


def _fingerprint(traced) -> np.ndarray:
    """A digest of a function, as an operand of its call.

    XLA's program names a custom-partitioned call by an address alone, which JAX leaves out of the key of its
    persistent cache if `jax_remove_custom_partitioning_ptr_from_cache_key` is set (otherwise no later process
    finds what one has compiled). Without this operand, programs that differ in their kernels alone would then be
    taken for one another.
    """
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(traced)).encode())
    return np.frombuffer(digest.digest()[:16], np.uint32)


def vary_alike[Arrays](arrays: Arrays) -> Arrays:
    """Under shard_map, marks all arrays of a pytree as varying over the mesh axes that any varies over.

    A scan's carry needs one type throughout, and the transpose of this mark is the sum over shards that a
    parameter's gradient needs. Outside shard_map it returns the arrays as they are.
    """
    return mark_varying(arrays, _varying(arrays))


def mark_varying[Arrays](arrays: Arrays, axes: frozenset[str]) -> Arrays:
    """Under shard_map, marks all arrays of a pytree as varying over these mesh axes."""

    def mark(x: Array) -> Array:
        missing = tuple(sorted(axes - _varying(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, arrays)


def _varying(arrays) -> frozenset[str]:
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(arrays)))

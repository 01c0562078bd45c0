"""Where weights and tokens lie while a model computes on a mesh of devices.

Left to itself, XLA's partitioner may leave divided weights where they are and move the activations, which grow with the
batch. So the models say what they want: a layer's weights whole where the layer runs (in the dtype that it computes
in), their gradients divided again, and tokens on the device of their sample and of their part of the sequence. Nothing
here has any effect outside `on_mesh`.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

SAMPLES = ("data", "fsdp")  # the mesh axes that samples are divided over,
WEIGHTS = "fsdp"  # the one for weights,
TOKENS = "seq"  # and the one for the tokens of a sample
SMALLEST_DIVIDED = 2**14  # elements; below that, gathering costs more than the memory saved

_mesh: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None) -> Iterator[None]:
    """While a model is traced inside, its weights and tokens are placed on this mesh."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def parts(axis: str) -> int:
    """Over how many devices something is divided that lies along this axis of the mesh at hand."""
    mesh = _mesh.get()
    return 1 if mesh is None else mesh.shape.get(axis, 1)


def current_mesh() -> Mesh | None:
    """The mesh of `on_mesh`."""
    return _mesh.get()


def divided_axis(shape: tuple[int, ...], size: int, count: int, first: int = 0) -> int | None:
    """The axis along which an array of weights is divided over `count` devices; None: every device holds all of it.

    It is the largest that `count` divides, from axis `first` on; none for `size` elements of too little weight.
    """
    candidates = [axis for axis in range(first, len(shape)) if shape[axis] % count == 0]
    if count == 1 or not candidates or size < SMALLEST_DIVIDED:
        return None
    return max(candidates, key=lambda axis: shape[axis])


def gathered(weights: Any, dtype: str | None = None, layers: int = 1) -> Any:
    """Weights whole on every device that uses them; their gradients arrive divided as the weights were.

    dtype: what a linear layer's kernel is computed in, and so what travels. layers: how many the array of all layers
    has, of which these weights are one.
    """
    count = parts(WEIGHTS)
    if count == 1:
        return weights

    def gather(path, leaf):
        if dtype is not None and any(getattr(entry, "key", None) == "kernel" for entry in path):
            leaf = leaf.astype(dtype)
        axis = divided_axis(leaf.shape, leaf.size * layers, count)
        return leaf if axis is None else _gather(leaf, axis)

    return jax.tree_util.tree_map_with_path(gather, weights)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x: Array, axis: int) -> Array:
    return _constrain(x, PartitionSpec())


def _gather_forward(x, axis):
    return _gather(x, axis), None


def _gather_backward(axis, _, gradient):
    return (_constrain(gradient, PartitionSpec(*[None] * axis, WEIGHTS)),)


_gather.defvjp(_gather_forward, _gather_backward)


def placed[Tokens](tokens: Tokens) -> Tokens:
    """Arrays (samples, tokens, …) of a pytree, divided over the devices by samples and by tokens."""
    if current_mesh() is None:
        return tokens
    spec = PartitionSpec(SAMPLES, TOKENS if parts(TOKENS) > 1 else None)
    return jax.tree.map(lambda x: _constrain(x, spec), tokens)


def _constrain(x: Array, spec: PartitionSpec) -> Array:
    mesh = current_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def keep_all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint`: the backward pass gathers weights again, and recomputes nothing else."""
    return primitive.name != "sharding_constraint"


def remat(block: Any, policy: Any, **options: Any) -> Any:
    """`jax.checkpoint` of a layer by a policy; None recomputes nothing, but keeps no weights that were gathered."""
    if policy is None and parts(WEIGHTS) == 1:
        return block
    return jax.checkpoint(block, policy=policy or keep_all_but_gathered, **options)

"""Where arrays live: one mesh with axes ("data", "fsdp", "seq").

Samples are divided over the first two axes, the tokens of a sample over the last, and the state (parameters, optimiser
and their average) over "fsdp", by rule. `zigma_jax.models.placement` says where things lie while a model computes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from zigma_jax.errors import ConfigError
from zigma_jax.models.placement import SAMPLES, TOKENS, WEIGHTS, divided_axis

AXES = (*SAMPLES, TOKENS)
BATCH = PartitionSpec(SAMPLES)


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None, seq: int = 1) -> Mesh:
    """All devices (of all processes) as a mesh of (devices / (fsdp · seq), fsdp, seq), neighbours near each other.

    Raises:
        ConfigError: fsdp, seq or their product does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    for field, size in (("fsdp", fsdp), ("seq", seq)):
        if size < 1 or count % size:
            raise ConfigError(f"config.train.{field} = {size}: must divide the number of devices, {count}")
    if count % (fsdp * seq):
        raise ConfigError(
            f"config.train.fsdp = {fsdp} and config.train.seq = {seq}: their product, {fsdp * seq}, must divide the "
            f"number of devices, {count}"
        )
    shape = (count // (fsdp * seq), fsdp, seq)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=list(devices))


def samples_over(mesh: Mesh) -> int:
    """Over how many parts of the mesh samples are divided."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ConfigError unless every device gets the same whole number of samples in every part of the batch."""
    if batch_size % (accumulate * samples_over(mesh)):
        parts = f" × {accumulate} parts (train.accumulate)" if accumulate > 1 else ""
        devices = "the number of devices" if mesh.shape[TOKENS] == 1 else "the devices that samples are divided over"
        raise ConfigError(
            f"config.train.batch_size = {batch_size}: must be divisible by {devices}, {samples_over(mesh)}{parts}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Samples divided over the devices, but for those that share the tokens of a sample."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """For every array of a training state: its largest axis that "fsdp" divides is divided, never the layer axis.

    Optimiser moments and EMA have their parameter's path and shape, so they are divided as it is.
    """

    def rule(path, leaf):
        axis = divided_axis(leaf.shape, leaf.size, mesh.shape[WEIGHTS], first=1 if _is_stacked(path) else 0)
        return NamedSharding(mesh, PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, WEIGHTS))

    return jax.tree_util.tree_map_with_path(rule, state)


def put[Tree](tree: Tree, sharding: NamedSharding) -> Tree:
    """Arrays on the devices, of host arrays that every process has as a whole."""
    return jax.tree.map(lambda x: _put(x, sharding), tree)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def rows_of_process(sharding: NamedSharding, count: int) -> np.ndarray:
    """Which of `count` samples, divided so, this process's devices hold: ascending."""
    indices = sharding.addressable_devices_indices_map((count,)).values()
    held = {range(*index[0].indices(count)) for index in indices if index is not None}
    return np.array(sorted({row for rows in held for row in rows}), np.int64)


def from_rows(rows: np.ndarray, mine: PyTree, count: int, sharding: NamedSharding) -> PyTree:
    """Global arrays of `count` samples from this process's, `mine`: those numbered `rows`."""

    def place(local):
        def held(index):
            return local[np.searchsorted(rows, np.arange(*index[0].indices(count)))]

        return jax.make_array_from_callback((count, *local.shape[1:]), sharding, held)

    return jax.tree.map(place, mine)


def _is_stacked(path) -> bool:
    """Whether a leaf belongs to the blocks, whose first axis is the layer that `lax.scan` runs over."""
    return any(str(getattr(entry, "key", "")).endswith("blocks") for entry in path)

"""Where arrays live: one mesh with axes ("data", "fsdp"), the batch over both, the state over "fsdp" by rule."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zigma_jax.errors import ConfigError

BATCH = PartitionSpec(("data", "fsdp"))
SMALLEST_DIVIDED = 2**14  # elements; below that, gathering costs more than the memory saved


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices (of all processes) as a mesh of (devices / fsdp, fsdp).

    Raises:
        ConfigError: fsdp does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % fsdp:
        raise ConfigError(f"config.train.fsdp = {fsdp}: must divide the number of devices, {len(devices)}")
    return Mesh(np.asarray(devices).reshape(-1, fsdp), ("data", "fsdp"))


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ConfigError unless every device gets the same whole number of samples in every part of the batch."""
    if batch_size % (accumulate * mesh.size):
        parts = f" × {accumulate} parts (train.accumulate)" if accumulate > 1 else ""
        raise ConfigError(
            f"config.train.batch_size = {batch_size}: must be divisible by the number of devices, {mesh.size}{parts}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Samples divided over all devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """For every array of a training state: its largest axis that "fsdp" divides is divided, never the layer axis.

    Optimiser moments and EMA have their parameter's path and shape, so they are divided as it is.
    """

    def rule(path, leaf):
        axes = range(1 if _is_stacked(path) else 0, leaf.ndim)
        candidates = [axis for axis in axes if leaf.shape[axis] % mesh.shape["fsdp"] == 0]
        if not candidates or leaf.size < SMALLEST_DIVIDED:
            return replicated(mesh)
        divided = max(candidates, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*("fsdp" if axis == divided else None for axis in range(leaf.ndim))))

    return jax.tree_util.tree_map_with_path(rule, state)


def _is_stacked(path) -> bool:
    """Whether a leaf belongs to the blocks, whose first axis is the layer that `lax.scan` runs over."""
    return any(getattr(entry, "key", None) == "blocks" for entry in path)

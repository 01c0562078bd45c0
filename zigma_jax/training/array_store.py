"""Trees of arrays on disk by orbax, every array under its name; parameters alone, to give away or take in.

Names are those of the tree, as "params/blocks/kernel"; orbax sees nested dicts of them, whatever classes a
tree is made of, so that what is written here can be read by orbax alone and without this library.
"""

import contextlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jaxtyping import PyTree

from zigma_jax.errors import UserError
from zigma_jax.files import AnyPath, as_path, in_bucket, remove_tree, sync_directory, sync_tree


class CheckpointError(UserError, RuntimeError):
    """A checkpoint could not be written, is damaged, or belongs to another model."""


def save_params(path: str | AnyPath, params: PyTree) -> None:
    """Writes a tree of arrays as a bare orbax checkpoint, which is there whole or not at all.

    Raises CheckpointError if `path` exists, or cannot be written: a full disk, for one.
    """
    path = absolute(path)
    if path.exists():
        raise CheckpointError(f"{path} exists already")
    # Orbax's own temporary names go into it, too. In a bucket orbax writes in place, and a file that says so last.
    staging = path if in_bucket(path) else path.with_name(f".{path.name}.partial")
    target = path if in_bucket(path) else staging / path.name
    try:
        remove_tree(staging)
        with ocp.Checkpointer(handler()) as orbax:
            orbax.save(target, args=ocp.args.PyTreeSave(nest(flatten(params))))
        if jax.process_index() == 0 and not in_bucket(path):
            sync_tree(staging)
            target.rename(path)
            sync_directory(path.parent)
    except Exception as error:
        if jax.process_index() == 0 and in_bucket(path):
            with contextlib.suppress(Exception):
                remove_tree(path)
        raise CheckpointError(f"could not write {path}: {cause_of(error)}") from error
    finally:
        if jax.process_index() == 0 and not in_bucket(path):
            with contextlib.suppress(OSError):
                remove_tree(staging)


def load_params(path: str | AnyPath, abstract: PyTree) -> PyTree:
    """The parameters of a bare orbax checkpoint, placed as `abstract` says (see `Checkpointer.restore`).

    Orbax keeps no checksums: nothing is verified but names, shapes and dtypes, for which CheckpointError is
    raised.
    """
    path = absolute(path)
    wanted = {name: placed(leaf) for name, leaf in flatten(abstract).items()}
    with ocp.Checkpointer(handler()) as orbax:
        metadata = orbax.metadata(path).item_metadata if path.is_dir() else None
        if metadata is None:
            raise CheckpointError(f"{path} is not an orbax checkpoint of a tree of arrays")
        stored = {
            name: {"shape": leaf.shape, "dtype": str(jnp.dtype(leaf.dtype))}
            for name, leaf in flatten(metadata.tree).items()
        }
        check_same_model(wanted, stored, path, partial=False)
        return jax.tree.unflatten(jax.tree.structure(abstract), load(orbax, path, wanted).values())


def absolute(path: str | AnyPath) -> AnyPath:
    """A path as orbax needs it. Raises as `as_path`."""
    path = as_path(path)
    return path.absolute() if isinstance(path, Path) else path


def handler() -> ocp.PyTreeCheckpointHandler:
    """How orbax stores a tree here."""
    # Weights hardly compress (480 MB to 444), and zstd makes saving and restoring several times slower.
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by name, as "params/blocks/kernel", in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest(leaves: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by name: what orbax stores, whatever classes the state was made of."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array, of a `ShapeDtypeStruct`; the first device if it has none."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def load(orbax: ocp.Checkpointer, path: AnyPath, wanted: dict[str, Any]) -> dict[str, jax.Array]:
    """The arrays of `wanted`, which holds `ShapeDtypeStruct`s with shardings by name, in its order."""
    item = nest(wanted)
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    tree = orbax.restore(path, args=ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True))
    leaves = flatten(tree)
    return {name: leaves[name] for name in wanted}


def read_array(path: AnyPath, name: str) -> np.ndarray:
    """One array, past orbax, whose restore of damaged data leaves threads with errors of their own behind."""
    base = f"{path}/" if in_bucket(path) else f"file://{path}/"
    store = {"driver": "ocdbt", "base": base, "path": f"{name.replace('/', '.')}/"}
    return tensorstore.open({"driver": "zarr", "kvstore": store}).result().read().result()


def check_same_model(wanted: dict, stored: dict, path: AnyPath, partial: bool) -> None:
    """Raises CheckpointError naming the leaves unless the checkpoint holds those that are wanted."""
    lines = []
    if missing := [name for name in wanted if name not in stored]:
        lines.append(f"missing from the checkpoint: {listed(missing)}")
    if not partial and (unexpected := [name for name in stored if name not in wanted]):
        lines.append(f"only in the checkpoint: {listed(unexpected)}")
    for name in wanted.keys() & stored.keys():
        there = f"{tuple(stored[name]['shape'])} {stored[name]['dtype']}"
        here = f"{tuple(wanted[name].shape)} {wanted[name].dtype}"
        if here != there:
            lines.append(f"{name}: {there} in the checkpoint, {here} in the model")
    if lines:
        raise CheckpointError("\n  ".join([f"checkpoint {path} is of another model:", *sorted(lines)]))


def listed(names: list[str], limit: int = 8) -> str:
    """The first names, and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def cause_of(error: Exception) -> str:
    """An error in one line, without tensorstore's account of its whole configuration."""
    return f"{type(error).__name__}: {error}".split(" [tensorstore_spec")[0].replace("\n", " ")

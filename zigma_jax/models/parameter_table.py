"""What a model is made of, as text."""

import math

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree


def parameter_table(params: PyTree) -> str:
    """A table of path, shape, dtype, count and share of a model's parameters, and their total.

    params: an NNX module, or any tree of arrays or `ShapeDtypeStruct`s.

    Layers alike, "blocks/0/kernel" to "blocks/23/kernel", are one row: "blocks/{0-23}/kernel", "24 x (8, 8)".
    """
    if isinstance(params, nnx.Module):
        params = nnx.to_pure_dict(nnx.state(params, nnx.Param))
    groups: dict[tuple[str, tuple[int, ...], str], list[list[int]]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        pattern = "/".join("{}" if part.isdigit() else part for part in parts)
        key = pattern, tuple(leaf.shape), str(leaf.dtype)
        groups.setdefault(key, []).append([int(part) for part in parts if part.isdigit()])
    rows, total, size = [], 0, 0
    for (pattern, shape, dtype), indices in groups.items():
        count = math.prod(shape) * len(indices)
        total, size = total + count, size + count * np.dtype(dtype).itemsize
        times = f"{len(indices)} x " if len(indices) > 1 else ""
        name = pattern.format(*map(_span, zip(*indices, strict=True)))
        rows.append((name, f"{times}{shape}", dtype, count))
    cells = [("parameter", "shape", "dtype", "count", "share")]
    cells += [(*row, f"{count:,}", f"{count / max(total, 1):.1%}") for *row, count in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = "<<<>>"  # numbers to the right
    lines = ["  ".join(map("{:{}{}}".format, row, sides, widths)) for row in cells]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:], rule, f"total: {total:,} parameters, {size / 1e6:,.1f} MB"])


def _span(indices: tuple[int, ...]) -> str:
    """The different numbers at one place of some paths: as 7, {0-23} or {0,2,5}."""
    numbers = sorted(set(indices))
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}-{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}"

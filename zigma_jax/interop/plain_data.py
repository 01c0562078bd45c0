"""Plain Python data from what `inert_pickle` read: dictionaries, lists, arrays, configurations."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from zigma_jax.interop.inert_pickle import Global, Record, TorchFileError

_OMEGACONF_CONTAINERS = ("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig")
_OMEGACONF_NODES = tuple(
    f"omegaconf.nodes.{kind}Node"
    for kind in (
        "Any",
        "String",
        "Integer",
        "Float",
        "Boolean",
        "Bytes",
        "Path",
        "Enum",
        "InterpolationResult",
    )
)
_ARRAYS = tuple(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))


def to_plain(value: Any, leaf: Callable[[Any], Any] = lambda value: value) -> Any:
    """Dicts, lists, tuples, sets, scalars and NumPy arrays from what `load` returned; `leaf` converts the rest.

    OmegaConf trees, argparse namespaces and subclasses of dict become dicts. A value `${a.b}` that refers to a scalar
    is replaced by it; other interpolations stay the text they are. A name becomes its dotted text. An object of any
    other class stays the `Record` that it is. Shared objects stay shared.

    Raises TorchFileError for a structure that contains itself, or is nested deeper than 100.
    """
    return _plain(value, leaf, {}, 0)


def _plain(value: Any, leaf: Callable[[Any], Any], done: dict[int, Any], depth: int) -> Any:
    if value is None or isinstance(value, str | bytes | int | float | complex | set | frozenset):
        return value
    if id(value) in done:
        return done[id(value)]
    if depth > 100:
        raise TorchFileError("the pickle is nested deeper than 100, or contains itself")

    def convert(part: Any) -> Any:
        return _plain(part, leaf, done, depth + 1)

    if isinstance(value, dict):
        result = type(value)((_name(key), convert(part)) for key, part in value.items())
    elif isinstance(value, list | tuple):
        result = type(value)(convert(part) for part in value)
    elif isinstance(value, Global):
        result = value.name
    elif isinstance(value, Record):
        result = _plain_record(value, convert)
    else:
        result = leaf(value)
    done[id(value)] = result
    return result


def _name(key: Any) -> Any:
    return key.name if isinstance(key, Global) else key


def _plain_record(record: Record, convert: Callable[[Any], Any]) -> Any:
    state = record.state if isinstance(record.state, dict) else {}
    if record.name in _OMEGACONF_CONTAINERS:
        tree = convert(state.get("_content"))
        return tree if state.get("_parent") is not None else _interpolate(tree, tree)
    if record.name in _OMEGACONF_NODES:
        return convert(state.get("_val"))
    if record.name in ("argparse.Namespace", "types.SimpleNamespace"):
        return convert(state)
    if record.entries:  # a subclass of dict, such as training programs keep their arguments in
        return {_name(key): convert(part) for key, part in record.entries.items()}
    if record.name in _ARRAYS:
        array = _numpy_array(record.state)
        return record if array is None else array
    return record


def _numpy_array(state: Any) -> np.ndarray | None:
    """Of what NumPy pickles: (version, shape, dtype, Fortran's order, bytes), read-only. None for objects and texts."""
    match state:
        case (int(), tuple(shape), Record() as dtype, bool(fortran), bytes(data)):
            kind = numpy_dtype(dtype)
        case _:
            return None
    if kind is None or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 64:
        return None
    if math.prod(shape) * kind.itemsize != len(data):
        return None
    # No copy: many arrays of a file may be made of the same bytes.
    return np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")


def numpy_dtype(dtype: Any) -> np.dtype[Any] | None:
    """The dtype of a pickled `numpy.dtype`; None if it is not of numbers."""
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.name == "numpy.dtype" and dtype.args else None
    if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code):
        return None
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "<"
    return np.dtype(code).newbyteorder(">" if order == ">" else "<")


def _interpolate(tree: Any, root: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _interpolate(part, root) for key, part in tree.items()}
    if isinstance(tree, list):
        return [_interpolate(part, root) for part in tree]
    value = tree
    for _ in range(16):  # a value may refer to one that refers on; a circle ends here
        match = re.fullmatch(r"\$\{(\w+(?:\.\w+)*)\}", value) if isinstance(value, str) else None
        if match is None:
            return value
        target = root
        for key in match[1].split("."):
            target = target[key] if isinstance(target, dict) and key in target else ...
        if target is ... or isinstance(target, dict | list):
            return value
        value = target
    return tree

"""A reader of pickles that cannot run anything: opcodes are interpreted here, and no name is ever imported.

Python's own unpickler calls whatever a file names. This one knows only the opcodes of which data files
consist. A global is a token that carries its dotted name and nothing else; calling a token looks the
name up in a table that the caller gives, and a name outside the table is refused. Every object that
comes out is a plain Python value, a `Record`, or what the caller's own functions returned.
"""

import mmap
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from zigma_jax.errors import WeightsError


class TorchFileError(WeightsError):
    """The file is damaged, or holds something that is not a checkpoint; the message names file and entry."""


class UnsafeCheckpointError(TorchFileError):
    """The pickle names a function, class or opcode that no checkpoint needs. Nothing was executed."""


class Global:
    """A name in the pickle, `module.attribute`. It is never imported."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class Record:
    """What remains of an object of a class that is not ours: the class's name, its arguments, its state."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...]):
        self.name, self.args = name, args
        self.state: Any = None


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
# Published files hold their configuration as an OmegaConf tree or an argparse namespace: read as records.
CONFIG_NAMES = (
    *_OMEGACONF_CONTAINERS,
    *_OMEGACONF_NODES,
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "argparse.Namespace",
    "typing.Any",
    *(f"builtins.{kind}" for kind in ("dict", "list", "tuple", "set", "str", "bytes", "int", "long", "float", "bool")),
)

_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def load(
    data: bytes | mmap.mmap,
    construct: Mapping[str, Callable[..., Any]],
    inert: frozenset[str],
    persistent_load: Callable[[Any], Any],
) -> Any:
    """Interpret a pickle (protocols 2 to 5, the subset that holds data); a mapped file is read on to the pickle's end.

    `construct` maps the names that may be called to our own functions. Names in `inert` may appear as values,
    and calling one gives a `Record`. `persistent_load` turns a persistent id into an object.

    Raises UnsafeCheckpointError for any other name or opcode, TorchFileError for a malformed pickle.
    """
    try:
        return _run(data, construct, inert, persistent_load)
    except TorchFileError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise TorchFileError(f"malformed pickle: {type(error).__name__}: {error}") from error


def _run(
    data: bytes | mmap.mmap,
    construct: Mapping[str, Callable[..., Any]],
    inert: frozenset[str],
    persistent_load: Callable[[Any], Any],
) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int) -> list[Any]:
        if len(stack) - count < (marks[-1] if marks else 0):
            raise TorchFileError("malformed pickle: the stack is empty")
        values = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return values

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    def name_of(module: str, attribute: str) -> Global:
        # Protocol 2 spells modules as Python 2 did.
        name = f"{'builtins' if module == '__builtin__' else module}.{attribute}"
        if name not in construct and name not in inert:
            raise UnsafeCheckpointError(
                f"the pickle refers to {name!r}, which no checkpoint needs; nothing was executed"
            )
        return Global(name)

    def call(function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise UnsafeCheckpointError(
                f"the pickle calls a {type(function).__name__}, not a name; nothing was executed"
            )
        if function.name in construct:
            return construct[function.name](*arguments)
        return Record(function.name, arguments)

    arg: Any
    for opcode, arg, _ in pickletools.genops(data):  # type: ignore[arg-type]
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                (value,) = pop(1)
                return value
            case name if name in _LITERALS:
                stack.append(arg)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(opcode.name[-1]))))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND" | "APPENDS":
                values = pop(1) if opcode.name == "APPEND" else pop_to_mark()
                _expect(stack[-1], list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = pop(2) if opcode.name == "SETITEM" else pop_to_mark()
                _expect(stack[-1], dict).update(_pairs(values))
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "GLOBAL":
                module, _, attribute = arg.partition(" ")
                stack.append(name_of(module, attribute))
            case "STACK_GLOBAL":
                module, attribute = pop(2)
                stack.append(name_of(_expect(module, str), _expect(attribute, str)))
            case "REDUCE" | "NEWOBJ":
                function, arguments = pop(2)
                stack.append(call(function, arguments))
            case "BUILD":
                (state,) = pop(1)
                _set_state(stack[-1], state)
            case "BINPERSID":
                (key,) = pop(1)
                stack.append(persistent_load(key))
            case _:
                what = opcode.name if arg is None else f"{opcode.name} {str(arg)[:80]!r}"
                raise UnsafeCheckpointError(
                    f"pickle opcode {what} does not belong in a checkpoint; nothing was executed"
                )
    raise TorchFileError("malformed pickle: it has no end")


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TorchFileError(f"malformed pickle: expected a {kind.__name__}, found a {type(value).__name__}")
    return value


def _pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    if len(values) % 2:
        raise TorchFileError("malformed pickle: a key without a value")
    pairs = list(zip(values[::2], values[1::2], strict=True))
    for key, _ in pairs:
        # Hashing a tuple of tuples of tuples … can be made to take for ever.
        if not isinstance(key, str | int | float | None):
            raise TorchFileError(f"malformed pickle: a {type(key).__name__} as a dictionary key")
    return pairs


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, Record):
        target.state = state
    elif not isinstance(target, OrderedDict):  # a state dict's _metadata (layer versions) is of no use here
        raise UnsafeCheckpointError(f"the pickle sets the state of a {type(target).__name__}; nothing was executed")


def to_plain(value: Any, leaf: Callable[[Any], Any] = lambda value: value) -> Any:
    """Dicts, lists, tuples and scalars from what `load` returned; `leaf` converts everything else.

    OmegaConf trees and argparse namespaces become dicts. A value `${a.b}` that refers to a scalar is
    replaced by it; other interpolations stay the text they are. A name becomes its dotted text. Shared
    objects stay shared.

    Raises TorchFileError for a structure that contains itself, or is nested deeper than 100.
    """
    return _plain(value, leaf, {}, 0)


def _plain(value: Any, leaf: Callable[[Any], Any], done: dict[int, Any], depth: int) -> Any:
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    if id(value) in done:
        return done[id(value)]
    if depth > 100:
        raise TorchFileError("the pickle is nested deeper than 100, or contains itself")

    def convert(part: Any) -> Any:
        return _plain(part, leaf, done, depth + 1)

    if isinstance(value, dict):
        result = type(value)((key, convert(part)) for key, part in value.items())
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


def _plain_record(record: Record, convert: Callable[[Any], Any]) -> Any:
    state = record.state if isinstance(record.state, dict) else {}
    if record.name in _OMEGACONF_CONTAINERS:
        tree = convert(state.get("_content"))
        return tree if state.get("_parent") is not None else _interpolate(tree, tree)
    if record.name in _OMEGACONF_NODES:
        return convert(state.get("_val"))
    if record.name == "argparse.Namespace":
        return convert(state)
    raise TorchFileError(f"an object of class {record.name} cannot be turned into plain data")


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

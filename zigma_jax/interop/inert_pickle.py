"""A reader of pickles that cannot run anything: no name in the file is ever imported.

Python's own unpickler calls whatever a file names. `InertUnpickler` is its pure Python form with the opcodes that
look something up or call it replaced: a global is a token that carries its dotted name and nothing else, and calling
a token looks the name up in a table that the caller gives. A name outside the table gives a `Record`. So every object
that comes out is a plain Python value, a token, a record, or what the caller's own functions returned.

(The form in C would fill gigabytes with an index of its memo, or a length, that the file makes up.)
"""

import _compat_pickle
import io
import mmap
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from zigma_jax.errors import WeightsError
from zigma_jax.interop.alarming import is_alarming


class TorchFileError(WeightsError):
    """The file is damaged, or holds something that is not a checkpoint; the message names file and entry."""


class UnsafeCheckpointError(TorchFileError):
    """The pickle names a function that runs things, or does what no checkpoint needs. Nothing was executed."""


class Global:
    """A name in the pickle, `module.attribute`. It is never imported."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class Record:
    """What remains of an object of a class that is not ours.

    name: of its class, or of the function that was to make it. args: what it was to be made from. state: what was to
    be set on it. items: what was to be appended to it. entries: what was to be stored in it, if it is a mapping.
    """

    __slots__ = ("args", "entries", "items", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...]):
        self.name, self.args = name, args
        self.state: Any = None
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}


def load(
    data: bytes | mmap.mmap,
    construct: Mapping[str, Callable[..., Any]],
    persistent_load: Callable[[Any], Any],
) -> Any:
    """What a pickle holds (protocols 2 to 5, the opcodes that hold data); a mapped file is read to the pickle's end.

    `construct` maps the names that may be called to our own functions; calling any other name gives a `Record`.
    `persistent_load` turns a persistent id into an object.

    Raises UnsafeCheckpointError for a name that only an attack would use, and for an opcode that no checkpoint needs,
    TorchFileError for a malformed pickle.
    """
    try:
        return InertUnpickler(data, construct, persistent_load).load()
    except TorchFileError:
        raise
    except (
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        EOFError,
        RecursionError,
    ) as error:
        raise TorchFileError(f"malformed pickle: {type(error).__name__}: {error}") from error
    except (pickle.UnpicklingError, struct.error, MemoryError) as error:
        raise TorchFileError(f"malformed pickle: {type(error).__name__}: {error}") from error


class _Opcodes(dict[int, Callable[[Any], None]]):
    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise UnsafeCheckpointError(
            f"pickle opcode {bytes([code])!r} does not belong in a checkpoint; nothing was executed"
        )


_PurePython: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]


class InertUnpickler(_PurePython):
    """See `load`."""

    def __init__(self, data: bytes | mmap.mmap, construct: Mapping[str, Callable[..., Any]], persistent_load: Callable):
        super().__init__(io.BytesIO(data) if isinstance(data, bytes) else data, encoding="bytes")
        self.construct, self.persistent_load = construct, persistent_load
        self.left = 4 * len(data) + 4096

    def find_class(self, module: str, name: str) -> Global:
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)  # protocol 2 spells it as Python 2 did
        if f"{module}.{name}" not in self.construct and is_alarming(module, name):
            raise UnsafeCheckpointError(
                f"the pickle refers to '{module}.{name}', which no checkpoint needs; nothing was executed"
            )
        return Global(f"{module}.{name}")

    def call(self, function: Any, arguments: Any, keywords: Any = None) -> None:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise UnsafeCheckpointError(
                f"the pickle calls a {type(function).__name__}, not a name; nothing was executed"
            )
        if function.name in self.construct:
            # One argument may be used again and again, and its copies must not fill the memory.
            self.left -= sum(len(part) for part in arguments if isinstance(part, str | bytes | list | dict))
            if self.left < 0:
                raise TorchFileError("malformed pickle: it makes far more than it holds")
            self.append(self.construct[function.name](*arguments))
        else:
            self.append(Record(function.name, (*arguments, keywords) if keywords else arguments))

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.call(function, arguments)

    def load_newobj_ex(self) -> None:
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.call(function, arguments, keywords)

    def load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode() for _ in range(2))
        self.call(self.find_class(module, name), tuple(self.pop_mark()))

    def load_obj(self) -> None:
        function, *arguments = self.pop_mark()
        self.call(function, tuple(arguments))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif isinstance(target, Global | dict | list | tuple) and not isinstance(target, OrderedDict):
            raise UnsafeCheckpointError(f"the pickle sets the state of a {type(target).__name__}; nothing was executed")

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        (target.items if isinstance(target, Record) else _expect(target, list)).extend(values)

    def load_setitems(self) -> None:
        self._store(self.pop_mark())

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._store([key, value])

    def _store(self, values: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Record) else _expect(target, dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            entries[check_key(key)] = value

    def load_additems(self) -> None:
        values, target = self.pop_mark(), self.stack[-1]
        _expect(target, set).update(map(check_key, values))

    def load_frozenset(self) -> None:
        self.append(frozenset(map(check_key, self.pop_mark())))

    def load_bytearray8(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))  # the original makes room for it first

    dispatch = _Opcodes(
        {
            code: function
            for code, function in _PurePython.dispatch.items()
            if bytes([code]) not in (b"P", b"\x82", b"\x83", b"\x84", b"I", b"L", b"F", b"S", b"V", b"\x97", b"\x98")
        }
        | {
            ord(pickle.REDUCE): load_reduce,
            ord(pickle.NEWOBJ): load_reduce,
            ord(pickle.NEWOBJ_EX): load_newobj_ex,
            ord(pickle.INST): load_inst,
            ord(pickle.OBJ): load_obj,
            ord(pickle.BUILD): load_build,
            ord(pickle.APPEND): load_append,
            ord(pickle.APPENDS): load_appends,
            ord(pickle.SETITEM): load_setitem,
            ord(pickle.SETITEMS): load_setitems,
            ord(pickle.ADDITEMS): load_additems,
            ord(pickle.FROZENSET): load_frozenset,
            ord(pickle.BYTEARRAY8): load_bytearray8,
        }
    )


def check_key(key: Any) -> Any:
    """A key of a dictionary or an element of a set; the hash of tuples within tuples can be made to take for ever."""
    parts, seen = [key], 0
    while parts:
        part = parts.pop()
        seen += 1
        if isinstance(part, list | dict | set) or seen > 100:
            raise TorchFileError(f"malformed pickle: a {type(part).__name__} as a dictionary key")
        if isinstance(part, tuple | frozenset):
            parts.extend(part)
    return key


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TorchFileError(f"malformed pickle: expected a {kind.__name__}, found a {type(value).__name__}")
    return value

"""NumPy arrays and plain data as a `.pt` file, written without PyTorch: the other half of `torch_file`."""

import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    "FloatStorage": np.dtype("f4"),
    "DoubleStorage": np.dtype("f8"),
    "HalfStorage": np.dtype("f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("i8"),
    "IntStorage": np.dtype("i4"),
    "ShortStorage": np.dtype("i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
    "ComplexFloatStorage": np.dtype("c8"),
    "ComplexDoubleStorage": np.dtype("c16"),
}
_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}
_FOLDER = "archive"
_ALIGNMENT = 64  # bytes; PyTorch maps storages from the file and wants them aligned


def write_torch(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a tree as PyTorch's zip format, readable by `torch.load(path, weights_only=True)`.

    Args:
        path: written whole or not at all (under a temporary name beside it, then renamed).
        tree: dicts and OrderedDicts (keys str, int, float or bool), lists, tuples, str, int, float, bool,
            None, and NumPy arrays of bool, int8 to int64, uint8, float16 to float64, bfloat16 (ml_dtypes),
            complex64 or complex128. An array that appears twice is stored once, and PyTorch's tensors
            share it. The same tree gives the same bytes.

    Raises:
        TypeError: a value or key of another type, naming its place in the tree.
        ValueError: nested deeper than 100, or containing itself.
    """
    path = Path(path)
    pickler = _Pickler()
    pickler.write(tree, ())
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
            _add(file, "data.pkl", b"\x80\x02" + bytes(pickler.out) + b".")
            _add(file, ".format_version", b"1")
            _add(file, ".storage_alignment", str(_ALIGNMENT).encode())
            _add(file, "byteorder", sys.byteorder.encode())
            for number, array in enumerate(pickler.arrays):
                _add(file, f"data/{number}", np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
            _add(file, "version", b"3\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _add(file: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """One entry, its data aligned by an extra field of padding in its header, as PyTorch does."""
    info = zipfile.ZipInfo(f"{_FOLDER}/{name}")
    info.file_size = len(data)
    assert file.fp is not None
    zip64 = 20 if info.file_size * 1.05 > zipfile.ZIP64_LIMIT else 0  # zipfile's own rule for the longer header
    start = file.fp.tell() + 30 + len(info.filename) + zip64 + 4
    padding = -start % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    file.writestr(info, data)


class _Pickler:
    """The tree as pickle protocol 2 in `out`, in opcodes PyTorch's safe reader knows."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.arrays: list[np.ndarray] = []
        self.numbers: dict[Any, int] = {}  # what memory an array shows -> its storage

    def write(self, value: Any, place: tuple[Any, ...]) -> None:
        out = self.out
        if len(place) > 100:
            raise ValueError("the tree is nested deeper than 100, or contains itself")
        match value:
            case None:
                out += b"N"
            case bool():
                out += b"\x88" if value else b"\x89"
            case np.generic():
                raise TypeError(f"{_show(place)}: a NumPy scalar ({value.dtype}); pass a Python number or an array")
            case int():
                self.integer(value)
            case float():
                out += b"G" + struct.pack(">d", value)
            case str():
                text = value.encode("utf-8", "surrogatepass")
                out += b"X" + struct.pack("<I", len(text)) + text
            case np.ndarray():
                self.tensor(value, place)
            case tuple():
                self.sequence(b"(", value, b"t", place)
            case list():
                self.sequence(b"](", value, b"e", place)
            case dict():
                if type(value) not in (dict, OrderedDict):
                    raise TypeError(f"{_show(place)}: a {type(value).__name__}, expected dict or OrderedDict")
                out += b"}(" if type(value) is dict else b"ccollections\nOrderedDict\n)R("
                for key, part in value.items():
                    if not isinstance(key, str | int | float):
                        raise TypeError(f"{_show(place)}: a key of type {type(key).__name__}, expected str or a number")
                    self.write(key, (*place, key))
                    self.write(part, (*place, key))
                out += b"u"
            case _:
                raise TypeError(f"{_show(place)}: a {type(value).__name__} cannot be written to a .pt file")

    def sequence(self, head: bytes, values: list[Any] | tuple[Any, ...], tail: bytes, place: tuple[Any, ...]) -> None:
        self.out += head
        for number, value in enumerate(values):
            self.write(value, (*place, number))
        self.out += tail

    def integer(self, value: int) -> None:
        if -(1 << 31) <= value < 1 << 31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            data = pickle.encode_long(value)
            if len(data) > 255:
                raise ValueError(f"an integer of {value.bit_length()} bits is too long")
            self.out += b"\x8a" + bytes([len(data)]) + data

    def tensor(self, array: np.ndarray, place: tuple[Any, ...]) -> None:
        native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
        storage = _STORAGE_OF.get(native.dtype)
        if storage is None:
            raise TypeError(f"{_show(place)}: PyTorch has no tensors of dtype {array.dtype}")
        memory = (array.__array_interface__["data"], array.dtype.str, array.shape, array.strides)
        number = self.numbers.setdefault(memory, len(self.arrays))
        if number == len(self.arrays):
            self.arrays.append(native)
        strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
        self.out += b"ctorch._utils\n_rebuild_tensor_v2\n("
        self.out += b"(X\x07\x00\x00\x00storage" + f"ctorch\n{storage}\n".encode()
        self.write(str(number), place)
        self.write("cpu", place)
        self.integer(array.size)
        self.out += b"tQ"
        self.integer(0)
        self.write(array.shape, place)
        self.write(tuple(strides), place)
        self.out += b"\x89ccollections\nOrderedDict\n)RtR"  # no gradient, no hooks


def _show(place: tuple[Any, ...]) -> str:
    return "tree" + "".join(f"[{key!r}]" for key in place)

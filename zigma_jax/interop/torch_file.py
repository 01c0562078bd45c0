"""PyTorch's `.pt` files (the zip format of `torch.save`) read without PyTorch and without running them.

A file is an uncompressed zip archive: `data.pkl` is a pickle of the saved object in which each tensor
refers to an entry `data/N` of raw numbers, a storage. Format: torch/serialization.py,
caffe2/serialize/inline_container.cc.
"""

import math
import os
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from zigma_jax.interop import inert_pickle
from zigma_jax.interop.inert_pickle import Record, TorchFileError, UnsafeCheckpointError, to_plain
from zigma_jax.interop.torch_writer import STORAGES, write_torch

__all__ = ["TorchFileError", "UnsafeCheckpointError", "read_torch", "write_torch"]

# Dtypes without a storage class of their own are saved as bytes and named beside them.
_DTYPES = {
    "torch.uint16": np.dtype("u2"),
    "torch.uint32": np.dtype("u4"),
    "torch.uint64": np.dtype("u8"),
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
_DTYPE_NAMES = frozenset(
    f"torch.{name}"
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
)
_INERT = frozenset(
    (
        *inert_pickle.CONFIG_NAMES,
        *(f"torch.{name}" for name in STORAGES),
        "torch.storage.UntypedStorage",
        *_DTYPES,
        *_DTYPE_NAMES,
        "numpy.dtype",
    )
)
# What zipfile raises on bad bytes: its own errors, names that are not UTF-8, versions it does not know.
_DAMAGE = (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, OverflowError, struct.error)
_CHUNK = 1 << 24  # bytes
_MOST = 1 << 48  # elements: no file is larger, and NumPy can count the bytes of an empty array


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    size: int  # elements


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch(path: str | os.PathLike[str], keys: Collection[str] | None = None) -> Any:
    """The object saved in a `.pt` file, with NumPy arrays for tensors.

    Args:
        path: a file written by `torch.save` (PyTorch 1.6 or newer) or by `write_torch`.
        keys: top-level entries to read, such as ("ema", "args"); other tensors stay on the disk. None: all.

    Returns:
        Dicts (OrderedDict where the file has one), lists, tuples, scalars, and arrays of the tensors'
        shapes and dtypes (bfloat16 as ml_dtypes.bfloat16), writable, in native byte order. Tensors that
        share a storage share memory. OmegaConf trees and argparse namespaces are plain dicts. Devices
        and gradient flags are dropped.

    Raises:
        UnsafeCheckpointError: the pickle refers to anything but data. Nothing from the file is ever executed.
        TorchFileError: damaged, truncated, in the format from before PyTorch 1.6, or no PyTorch file.
        FileNotFoundError: no such file.
    """
    try:
        with Path(path).open("rb") as file:
            archive = _Archive(file)
            root = archive.load()
            if keys is not None:
                if not isinstance(root, dict) or not all(key in root for key in keys):
                    there = sorted(map(str, root)) if isinstance(root, dict) else type(root).__name__
                    raise TorchFileError(f"keys {sorted(keys)} asked for, the file has {there}")
                root = {key: root[key] for key in keys}
            return to_plain(root, archive.array)
    except TorchFileError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


class _Archive:
    """The zip file, opened: its pickle, and its storages as they are asked for."""

    def __init__(self, file: BinaryIO):
        try:
            self.zip = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise TorchFileError(_why_not_zip(file)) from error
        except _DAMAGE as error:
            raise TorchFileError(f"damaged: the zip directory: {error}") from error
        self.entries = {info.filename: info for info in self.zip.infolist()}
        self.buffers: dict[str, np.ndarray] = {}
        for name, info in self.entries.items():
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise TorchFileError(f"entry {name} is compressed, which torch.save never does")
        total, available = sum(info.file_size for info in self.entries.values()), file.seek(0, os.SEEK_END)
        if total > available:
            raise TorchFileError(f"forged: the entries claim {total} bytes, the file has {available}")

    def load(self) -> Any:
        pickles = [name for name in self.entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise TorchFileError(f"not a file of torch.save: {len(pickles)} entries data.pkl, expected one")
        self.folder = pickles[0].removesuffix("data.pkl")
        if self.folder + "constants.pkl" in self.entries:
            raise TorchFileError("a TorchScript program, not a checkpoint; save the state dict with torch.save")
        order = self.folder + "byteorder"  # absent before PyTorch 2.1
        self.byteorder = self.read(order).tobytes().decode("ascii", "replace") if order in self.entries else "little"
        if self.byteorder not in ("little", "big"):
            raise TorchFileError(f"entry {order}: byte order {self.byteorder[:20]!r} is neither little nor big")
        return inert_pickle.load(self.read(pickles[0]).tobytes(), _CONSTRUCT, _INERT, self.storage)

    def read(self, name: str) -> np.ndarray:
        """An entry's bytes, its checksum verified."""
        info = self.entries.get(name)
        if info is None:
            raise TorchFileError(f"entry {name} is missing")
        buffer = np.empty(info.file_size, np.uint8)
        at = 0
        try:
            with self.zip.open(info) as file:
                # The checksum is compared when the end is met, hence one read more.
                while chunk := file.read(_CHUNK):
                    buffer[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
                    at += len(chunk)
        except _DAMAGE as error:
            raise TorchFileError(f"entry {name} is damaged: {error or type(error).__name__}") from error
        if at != info.file_size:
            raise TorchFileError(f"entry {name} is damaged: {at} bytes of {info.file_size}")
        return buffer

    def storage(self, key: Any) -> _Storage:
        """A persistent id, ("storage", class, entry, device, elements), checked against the entry's size."""
        match key:
            case ("storage", inert_pickle.Global() as kind, str(entry), str(), int(size)):
                name = kind.name.removeprefix("torch.")
            case _:
                raise TorchFileError("malformed pickle: a persistent id that is not a storage")
        if name == "storage.UntypedStorage":
            dtype = np.dtype("u1")
        elif name in STORAGES:
            dtype = STORAGES[name]
        else:
            raise TorchFileError(f"{kind.name} is not a storage")
        info = self.entries.get(f"{self.folder}data/{entry}")
        if info is None:
            raise TorchFileError(f"entry {self.folder}data/{entry} is missing")
        if info.file_size != size * dtype.itemsize:
            wanted = f"{size} numbers of {dtype.itemsize} bytes ({kind.name})"
            raise TorchFileError(f"entry {info.filename} has {info.file_size} bytes, expected {wanted}")
        return _Storage(entry, dtype, size)

    def array(self, tensor: Any) -> np.ndarray:
        if not isinstance(tensor, _Tensor):
            raise TorchFileError(f"a {type(tensor).__name__} outside a tensor")
        storage = tensor.storage
        if storage.key not in self.buffers:
            buffer = self.read(f"{self.folder}data/{storage.key}")
            if self.byteorder != sys.byteorder:
                unit = storage.dtype.itemsize // (2 if storage.dtype.kind == "c" else 1)
                buffer.view(f"u{unit}").byteswap(inplace=True)
            self.buffers[storage.key] = buffer
        size = storage.dtype.itemsize
        return np.ndarray(
            tensor.shape,
            storage.dtype,
            buffer=self.buffers[storage.key],
            offset=tensor.offset * size if math.prod(tensor.shape) else 0,
            strides=[step * size for step in tensor.stride],
        )


def _why_not_zip(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return "truncated: a zip archive without its directory"
    if head.startswith(b"\x80") or head[257:262] == b"ustar":
        return "the format from before PyTorch 1.6; load it with PyTorch, save it with a current torch.save"
    return "not a file of torch.save (no zip archive)"


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> _Tensor:
    """A view of a storage, its bounds checked before anything is read."""
    del requires_grad, hooks, metadata
    if not isinstance(storage, _Storage):
        raise TorchFileError("malformed pickle: a tensor without a storage")
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= 64):
        raise TorchFileError("malformed pickle: a tensor's shape and strides are not tuples of one length up to 64")
    if not all(type(n) is int and 0 <= n < _MOST for n in (offset, *shape, *stride)):
        raise TorchFileError("malformed pickle: a tensor's offset, shape or strides are not numbers below 2^48")
    if math.prod(n or 1 for n in shape) >= _MOST:
        raise TorchFileError(f"malformed pickle: a tensor's shape {shape} has 2^48 elements or more")
    count = math.prod(shape)
    end = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1 if count else 0
    # A stride of 0 would make a large array of one number: no checkpoint has that.
    if max(end, count) > storage.size:
        what = f"a tensor at offset {offset} of shape {shape} with strides {stride}"
        raise TorchFileError(f"{what} does not fit entry data/{storage.key} of {storage.size} elements")
    return _Tensor(storage, offset, shape, stride)


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> _Tensor:
    named = _DTYPES.get(dtype.name) if isinstance(dtype, inert_pickle.Global) else None
    if named is None or not isinstance(storage, _Storage) or storage.size % named.itemsize:
        raise TorchFileError("malformed pickle: a tensor of unknown dtype")
    storage = _Storage(storage.key, named, storage.size // named.itemsize)
    return _rebuild_tensor(storage, offset, shape, stride, requires_grad, hooks, metadata)


def _rebuild_parameter(tensor: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    del requires_grad, hooks, state
    return tensor


def _ordered_dict() -> OrderedDict[Any, Any]:
    return OrderedDict()


def _default_dict(factory: Any = None) -> dict[Any, Any]:
    del factory
    return {}


def _device(kind: str, index: int | None = None) -> str:
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise TorchFileError("malformed pickle: a device that is not a name and a number")
    return kind if index is None else f"{kind}:{index}"


def _size(shape: Any = ()) -> tuple[Any, ...]:
    return tuple(shape)


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise TorchFileError("malformed pickle: bytes in an unknown encoding")
    return text.encode("latin1")


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.name == "numpy.dtype" and dtype.args else None
    if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]", code) or not isinstance(data, bytes):
        raise TorchFileError("malformed pickle: a NumPy scalar of unknown dtype")
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "<"
    kind = np.dtype(code).newbyteorder(">" if order == ">" else "<")
    if len(data) != kind.itemsize:
        raise TorchFileError(f"malformed pickle: a NumPy scalar {code} of {len(data)} bytes")
    return np.frombuffer(data, kind)[0].item()


_CONSTRUCT = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "_codecs.encode": _encode,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}

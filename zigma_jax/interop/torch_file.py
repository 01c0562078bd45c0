"""PyTorch's `.pt` files (what `torch.save` writes) read without PyTorch and without running them.

A file is an uncompressed zip archive: `data.pkl` is a pickle of the saved object in which each tensor
refers to an entry `data/N` of raw numbers, a storage. Format: torch/serialization.py,
caffe2/serialize/inline_container.cc. What PyTorch wrote before 1.6 is read by `torch_legacy`.
"""

import os
import re
import struct
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from zigma_jax.interop import inert_pickle
from zigma_jax.interop.file_kind import why_not_weights
from zigma_jax.interop.inert_pickle import TorchFileError, UnsafeCheckpointError
from zigma_jax.interop.plain_data import to_plain
from zigma_jax.interop.torch_legacy import LegacyFile, is_legacy
from zigma_jax.interop.torch_tensors import CONSTRUCT, Storage, Tensor, storage_dtype, view
from zigma_jax.interop.torch_writer import write_torch

__all__ = ["TorchFileError", "UnsafeCheckpointError", "read_torch", "write_torch"]

# What zipfile raises on bad bytes: its own errors, names that are not UTF-8, versions it does not know.
_DAMAGE = (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, OverflowError, struct.error)
_CHUNK = 1 << 24  # bytes


def read_torch(path: str | os.PathLike[str], keys: Collection[str] | None = None) -> Any:
    """The object saved in a `.pt` file, with NumPy arrays for tensors.

    Args:
        path: a file written by `torch.save` or by `write_torch`.
        keys: top-level entries to read, such as ("ema", "args"); other tensors stay on the disk. None: all.

    Returns:
        Dicts (OrderedDict where the file has one), lists, tuples, scalars, and arrays of the tensors'
        shapes and dtypes (bfloat16 as ml_dtypes.bfloat16), writable, in native byte order. Tensors that
        share a storage share memory. OmegaConf trees and argparse namespaces are plain dicts. Devices
        and gradient flags are dropped. What is no plain data (objects of other classes, sparse and quantized
        tensors) is an inert `Record` of its class's name and what it was made from. Of a TorchScript program, the
        tensors of its modules by their dotted names; the program itself is not looked at.

    Raises:
        UnsafeCheckpointError: the pickle refers to anything but data. Nothing from the file is ever executed.
        TorchFileError: damaged, truncated, a tar archive (PyTorch before 0.1.10), or no PyTorch file.
        FileNotFoundError: no such file.
    """
    if Path(path).is_dir():
        raise TorchFileError(f"{os.fspath(path)}: a directory, not a file of weights")
    try:
        with Path(path).open("rb") as file:
            archive = LegacyFile(file) if is_legacy(file) else _Archive(file)
            root = archive.load()
            if getattr(archive, "is_program", False):
                root = _tensors_of_program(root)
            if keys is not None:
                if not isinstance(root, dict) or not all(key in root for key in keys):
                    there = sorted(map(str, root)) if isinstance(root, dict) else type(root).__name__
                    raise TorchFileError(f"keys {sorted(keys)} asked for, the file has {there}")
                root = {key: root[key] for key in keys}
            return to_plain(root, archive.array)
    except TorchFileError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def _tensors_of_program(root: Any) -> dict[str, Any]:
    """The parameters and buffers of a TorchScript module and of those in it, as its `state_dict` would name them."""
    if not isinstance(root, inert_pickle.Record) or not isinstance(root.state, dict):
        raise TorchFileError("a TorchScript program without a module")
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        if prefix.count(".") > 100:
            raise TorchFileError("the pickle is nested deeper than 100, or contains itself")
        for name, value in module.state.items():
            if isinstance(value, inert_pickle.Record) and isinstance(value.state, dict):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
    return dict(sorted(found.items()))


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
            if "/code/" in name:  # of a TorchScript program, and never read
                continue
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise TorchFileError(f"entry {name} is compressed, which torch.save never does")
        total, available = sum(info.compress_size for info in self.entries.values()), file.seek(0, os.SEEK_END)
        if total > available:
            raise TorchFileError(f"forged: the entries claim {total} bytes, the file has {available}")

    def load(self) -> Any:
        pickles = [name for name in self.entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise TorchFileError(f"not a file of torch.save: {len(pickles)} entries data.pkl, expected one")
        self.folder = pickles[0].removesuffix("data.pkl")
        self.is_program = self.folder + "constants.pkl" in self.entries
        order = self.folder + "byteorder"  # absent before PyTorch 2.1
        self.byteorder = self.read(order).tobytes().decode("ascii", "replace") if order in self.entries else "little"
        if self.byteorder not in ("little", "big"):
            raise TorchFileError(f"entry {order}: byte order {self.byteorder[:20]!r} is neither little nor big")
        return inert_pickle.load(self.read(pickles[0]).tobytes(), CONSTRUCT, self.storage)

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

    def storage(self, key: Any) -> Storage:
        """A persistent id, ("storage", class, entry, device, elements), checked against the entry's size."""
        match key:
            case ("storage", inert_pickle.Global() as kind, str(entry), str(), int(size)):
                dtype = storage_dtype(kind)
            case _:
                raise TorchFileError("malformed pickle: a persistent id that is not a storage")
        info = self.entries.get(f"{self.folder}data/{entry}")
        if info is None:
            raise TorchFileError(f"entry {self.folder}data/{entry} is missing")
        if info.file_size != size * dtype.itemsize:
            wanted = f"{size} numbers of {dtype.itemsize} bytes ({kind.name})"
            raise TorchFileError(f"entry {info.filename} has {info.file_size} bytes, expected {wanted}")
        return Storage(entry, dtype, size)

    def array(self, tensor: Any) -> np.ndarray:
        return view(tensor, self.buffer)

    def buffer(self, storage: Storage) -> np.ndarray:
        if storage.key not in self.buffers:
            buffer = self.read(f"{self.folder}data/{storage.key}")
            if self.byteorder != sys.byteorder:
                unit = storage.dtype.itemsize // (2 if storage.dtype.kind == "c" else 1)
                buffer.view(f"u{unit}").byteswap(inplace=True)
            self.buffers[storage.key] = buffer
        return self.buffers[storage.key]


def _why_not_zip(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return "truncated: a zip archive without its directory"
    if head[257:262] == b"ustar":
        return "the tar format from before PyTorch 0.1.10; load it with PyTorch, save it with a current torch.save"
    return why_not_weights(file)

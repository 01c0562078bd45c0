"""PyTorch's files from before 1.6: the published Inception and EfficientNet weights still come as these.

Five pickles follow one another: a magic number, a version, the writer's integer sizes, the saved object, and the
storages' keys. Then comes each storage in the order of its key: how many numbers (int64), and the numbers.
Format: `_legacy_save` of torch/serialization.py.
"""

import mmap
from typing import Any, BinaryIO

import numpy as np

from zigma_jax.interop import inert_pickle
from zigma_jax.interop.file_kind import LEGACY_MAGIC
from zigma_jax.interop.inert_pickle import TorchFileError
from zigma_jax.interop.torch_tensors import CONSTRUCT, Storage, storage_dtype, view

_VERSION = 1001


def is_legacy(file: BinaryIO) -> bool:
    """Whether the file begins as this format does. The file is left at its beginning."""
    head = file.read(len(LEGACY_MAGIC))
    file.seek(0)
    return head == LEGACY_MAGIC


class LegacyFile:
    """The file, mapped: its object, and its storages where their bytes lie. The format has no checksums."""

    def __init__(self, file: BinaryIO):
        self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.storages: dict[str, Storage] = {}
        self.places: dict[str, int] = {}
        self.buffers: dict[str, np.ndarray] = {}

    def load(self) -> Any:
        _magic, version, sizes = (self.unpickle() for _ in range(3))
        if version != _VERSION or not isinstance(sizes, dict):
            raise TorchFileError(f"format version {str(version)[:20]} of torch.save, expected {_VERSION}")
        if sizes.get("little_endian") is not True:
            raise TorchFileError("written on a big-endian machine; load it with PyTorch, save it with a current one")
        root = self.unpickle()
        keys = self.unpickle()
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(self.storages):
            raise TorchFileError("damaged: the keys of the storages are not those that the tensors refer to")
        for key in keys:
            self.place(self.storages[key])
        return root

    def unpickle(self) -> Any:
        return inert_pickle.load(self.data, CONSTRUCT, self.storage)

    def storage(self, key: Any) -> Storage:
        """A persistent id: ("storage", class, key, device, elements, no view of another storage)."""
        match key:
            case ("storage", inert_pickle.Global() as kind, str(name), str(), int(size), None) if size >= 0:
                storage = Storage(name, storage_dtype(kind), size)
            case _:
                raise TorchFileError("malformed pickle: a persistent id that is not a storage of its own")
        if self.storages.setdefault(name, storage) != storage:
            raise TorchFileError(f"malformed pickle: storage {name} is described in two ways")
        return storage

    def place(self, storage: Storage) -> None:
        size = int.from_bytes(self.data.read(8), "little")
        if size != storage.size:
            raise TorchFileError(f"damaged: storage {storage.key} has {size} numbers, its tensors {storage.size}")
        start, length = self.data.tell(), size * storage.dtype.itemsize
        if start + length > len(self.data):
            raise TorchFileError(f"truncated: storage {storage.key} ends at byte {start + length} of {len(self.data)}")
        self.places[storage.key] = start
        self.data.seek(start + length)

    def array(self, tensor: Any) -> np.ndarray:
        return view(tensor, self.buffer)

    def buffer(self, storage: Storage) -> np.ndarray:
        if storage.key not in self.buffers:
            start = self.places[storage.key]
            data = self.data[start : start + storage.size * storage.dtype.itemsize]
            self.buffers[storage.key] = np.frombuffer(data, np.uint8).copy()  # a copy may be written to
        return self.buffers[storage.key]

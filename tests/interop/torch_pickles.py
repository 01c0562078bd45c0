"""PyTorch files around pickles that are made by hand."""

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np


def save(path: Path, data: bytes, storages: dict[str, bytes] | None = None, **entries: str) -> Path:
    """A file in torch.save's layout around a pickle made by hand."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", data)
        file.writestr("x/version", "3\n")
        for name, text in entries.items():
            file.writestr(f"x/{name}", text)
        for name, numbers in (storages or {}).items():
            file.writestr(f"x/data/{name}", numbers)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integers(*values: int) -> bytes:
    return b"(" + b"".join(b"\x8a" + bytes([len(n)]) + n for n in map(pickle.encode_long, values)) + b"t"


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, size: int = 6) -> bytes:
    """The pickle of one float32 tensor over entry data/0 of `size` numbers."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += integers(size)[1:-1] + b"tQ"
    view = integers(offset)[1:-1] + integers(*shape) + integers(*stride)
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"\x89ccollections\nOrderedDict\n)RtR."


SIX = np.arange(6, dtype="<f4")

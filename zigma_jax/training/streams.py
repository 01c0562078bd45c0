"""Arrays that are written as they come and never held whole: .npy files that grow, .npz files made from parts."""

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from zigma_jax.errors import DataError
from zigma_jax.files import sync_directory


class ArrayStream:
    """A .npy file of a known number of rows, to which rows are added. NumPy can read it once all of them are there.

    path: of the file. shape: of the whole array, rows first. count: rows that are in it already; what comes after
    them, a killed program's, is cut off.

    Raises:
        DataError: the file holds fewer than `count` rows.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype | type, count: int = 0):
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self._file = open(path, "r+b" if count else "w+b")  # noqa: SIM115 - closed by `close`
        _write_header(self._file, shape, self.dtype)
        self._start = self._file.tell()
        self._row = self.dtype.itemsize * int(np.prod(shape[1:]))
        end = self._start + count * self._row
        if self._file.seek(0, os.SEEK_END) < end:
            self._file.close()
            raise DataError(f"{path}: holds fewer than the {count} rows that were written; it was changed since")
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, rows: Shaped[np.ndarray, "b ..."]) -> None:
        """Adds rows; they are on the disk when this returns."""
        self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def parts(self) -> Iterator[Shaped[np.ndarray, "_b ..."]]:
        """The rows, some at a time."""
        some = max(1, 2**24 // self._row)
        self._file.seek(self._start)
        while data := self._file.read(some * self._row):
            yield np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])

    def close(self) -> None:
        self._file.close()


class Parts(NamedTuple):
    """An array that is made part by part."""

    shape: tuple[int, ...]
    dtype: np.dtype | type
    parts: Iterable[Shaped[np.ndarray, "_b ..."]]


def write_npz(path: Path, arrays: Mapping[str, Parts]) -> None:
    """Writes an .npz as `np.savez` does, with memory for one part alone; it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write_header(member, array.shape, np.dtype(array.dtype))
                    for part in array.parts:
                        member.write(np.ascontiguousarray(part, array.dtype).data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_directory(path.parent)


def _write_header(file, shape: tuple[int, ...], dtype: np.dtype) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})

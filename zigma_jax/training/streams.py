"""Arrays that are written as they come and never held whole: .npy files that grow, .npz files made from parts."""

import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from zigma_jax.errors import DataError
from zigma_jax.files import AnyPath, open_atomically, write_atomically


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

    def keep(self) -> None:
        """The file is the .npy already."""

    def close(self) -> None:
        self._file.close()


class ArrayParts:
    """As `ArrayStream`, in a bucket, where nothing is added to a file: each `append` puts an object into NAME.parts.

    Raises:
        DataError: the parts are not those of the first `count` rows.
    """

    def __init__(self, path: AnyPath, shape: tuple[int, ...], dtype: np.dtype | type, count: int = 0):
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self._folder, self._end = path.with_name(f"{path.stem}.parts"), 0
        for first, end, part in self._found():
            if first >= count:
                part.unlink()
            elif first == self._end:
                self._end = end
        if self._end != count:
            raise DataError(f"{self._folder}: does not hold the {count} rows that were written; it was changed since")

    def append(self, rows: Shaped[np.ndarray, "b ..."]) -> None:
        """Adds rows; they are in the bucket when this returns."""
        end = self._end + len(rows)
        write_atomically(self._folder / f"{self._end:09d}-{end:09d}", np.ascontiguousarray(rows, self.dtype).tobytes())
        self._end = end

    def parts(self) -> Iterator[Shaped[np.ndarray, "_b ..."]]:
        """The rows, some at a time."""
        for _, _, part in self._found():
            yield np.frombuffer(part.read_bytes(), self.dtype).reshape(-1, *self.shape[1:])

    def keep(self) -> None:
        """Makes the .npy of them."""
        with open_atomically(self.path) as file:
            _write_header(file, self.shape, self.dtype)
            for rows in self.parts():
                file.write(np.ascontiguousarray(rows).data)

    def close(self) -> None:
        """Nothing is open."""

    def _found(self) -> list[tuple[int, int, Any]]:
        """First row, row after the last, and object, in their order."""
        if not self._folder.is_dir():
            return []
        names = {part: re.fullmatch(r"(\d{9})-(\d{9})", part.name) for part in self._folder.iterdir()}
        return sorted((int(match[1]), int(match[2]), part) for part, match in names.items() if match)


def open_stream(
    path: AnyPath, shape: tuple[int, ...], dtype: np.dtype | type, count: int = 0
) -> ArrayStream | ArrayParts:
    """The one that fits the place."""
    return ArrayStream(path, shape, dtype, count) if isinstance(path, Path) else ArrayParts(path, shape, dtype, count)


class Parts(NamedTuple):
    """An array that is made part by part."""

    shape: tuple[int, ...]
    dtype: np.dtype | type
    parts: Iterable[Shaped[np.ndarray, "_b ..."]]


def write_npz(path: AnyPath, arrays: Mapping[str, Parts]) -> None:
    """Writes an .npz as `np.savez` does, with memory for one part alone; it is there whole or not at all."""
    with open_atomically(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_header(member, array.shape, np.dtype(array.dtype))
                for part in array.parts:
                    member.write(np.ascontiguousarray(part, array.dtype).data)


def _write_header(file, shape: tuple[int, ...], dtype: np.dtype) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})

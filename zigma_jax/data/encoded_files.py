"""Numbers for every picture of a set, in ArrayRecord files that are whole or not there.

A directory holds `shard-00000-of-00032.array_record` … and, once the last of them is there, `index.json`, which says
what was encoded by what ("identity"), what a record holds ("fields": name, dtype, shape), how many pictures and views
there are, the size of every shard, and what the maker has to say of the whole ("summary").

Record k is view k % views of picture k // views; with mirror images, every second view is one. A record begins with
four bytes: `data`, and the picture's numbers follow, laid out as the kind of set has it; or `none`, and a sentence in
UTF-8 follows that says why this picture has no numbers. The last record of a shard is the shard's own summary in JSON,
so that a shard and what is known of it appear at once. Nothing in these files depends on when or by how many processes
they were written.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from absl import logging
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from zigma_jax.errors import DataError
from zigma_jax.files import sync_directory, write_atomically

FORMAT = 1
_OPTIONS = "group_size:1,uncompressed"  # a record a chunk for random access; float16 numbers hardly compress
_DATA, _NONE = b"data", b"none"
_OVERHEAD, _LEAST = 80, 2**17  # bytes a record and a shard beside what is in them, at most
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class EncodedFiles:
    """What an encoded set is and how it lies on the disk, whether it is there already or not.

    Attributes:
        directory: of this set alone.
        identity: JSON-able; says what was encoded, by what. Sets of another identity are never read.
        fields: JSON-able; name, dtype and shape of what a record holds.
        record_size: bytes of a record, about, for messages.
        pictures: how many.
        views: records a picture: as many as windows of a clip, and twice as many with the mirror images.
        shard_size: pictures in every shard but the last.
        elsewhere: what puts such a set into another directory, for messages.
    """

    directory: Path
    identity: Mapping[str, Any]
    fields: Sequence[Any]
    record_size: int
    pictures: int
    views: int
    shard_size: int
    elsewhere: str

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of identity and layout."""
        layout = [FORMAT, self.identity, self.fields, self.pictures, self.views, self.shard_size]
        return hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest()

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.pictures // self.shard_size)

    def pictures_of(self, shard: int) -> range:
        """The pictures that a shard holds."""
        return range(self.pictures)[shard * self.shard_size : (shard + 1) * self.shard_size]

    def path(self, shard: int) -> Path:
        return self.directory / f"shard-{shard:05d}-of-{self.shards:05d}.array_record"

    # ---- writing

    @staticmethod
    def pack_data(data: bytes) -> bytes:
        """A record of a picture's numbers."""
        return _DATA + data

    @staticmethod
    def pack_missing(reason: str) -> bytes:
        """A record of a picture that has no numbers."""
        return _NONE + reason.encode()

    def room(self, shards: Iterable[int]) -> int:
        """Bytes on the disk that so many shards need, about."""
        record = len(_DATA) + self.record_size + _OVERHEAD
        return sum(len(self.pictures_of(shard)) * self.views * record + _LEAST for shard in shards)

    def begin(self) -> list[int]:
        """Makes the directory and returns the shards that are still to be made.

        Raises:
            DataError: the directory cannot be made, or the disk has no room for these shards.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.directory}: cannot be made ({error.strerror}); {self.elsewhere} puts it elsewhere"
            ) from error
        missing = [shard for shard in range(self.shards) if self.summary(shard) is None]
        if missing and self.room(missing) > shutil.disk_usage(self.directory).free:
            raise self._no_room(missing)
        return missing

    @contextlib.contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Whether this process is the one that writes a shard: not while another does. A dead one holds nothing."""
        partial = self._partial(shard)
        with self._writing(), open(partial, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:  # a file system without locks: writing twice costs time, and gives the same bytes
                logging.log_first_n(logging.WARNING, "%s: cannot be locked (%s)", 1, partial, error)
            if not _is_open(file, partial):  # another process has made a shard of it since it was opened
                yield False
                return
            try:
                yield True
            finally:
                if _is_open(file, partial):
                    partial.unlink()

    def write(self, shard: int, records: Iterable[bytes], summary: Callable[[], Mapping[str, Any]]) -> None:
        """Writes a claimed shard: its records in order, then `summary()`, which is asked last.

        Raises:
            DataError: the disk is full. The shards before this one are kept.
        """
        partial = self._partial(shard)
        with self._writing():
            with _errors_of_the_system():
                writer = ArrayRecordWriter(str(partial), _OPTIONS)
            try:
                for record in records:
                    writer.write(record)
                    if not writer.ok():
                        raise OSError(errno.EIO, os.strerror(errno.EIO))
                said = {"fingerprint": self.fingerprint, **summary()}
                writer.write(json.dumps(said, sort_keys=True).encode())
            finally:
                with _errors_of_the_system():
                    writer.close()
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, self.path(shard))
            sync_directory(self.directory)

    def summary(self, shard: int) -> dict[str, Any] | None:
        """What was said of a shard; None if it is not there, or damaged."""
        path = self.path(shard)
        if not path.exists():
            return None
        try:
            reader = ArrayRecordReader(str(path))
            count = len(self.pictures_of(shard)) * self.views
            if reader.num_records() == count + 1:
                said = json.loads(reader.read([count])[0])
                if said.pop("fingerprint", None) == self.fingerprint:
                    return said
            reason = "its records are not those of this set"
        except (RuntimeError, ValueError, IndexError, AttributeError) as error:
            reason = str(error)
        logging.warning("%s is damaged and is made again: %s", path, reason)
        return None

    def write_index(self, summary: Mapping[str, Any]) -> None:
        """Writes index.json: all shards are there."""
        index = {
            "format": FORMAT,
            "identity": self.identity,
            "fingerprint": self.fingerprint,
            "fields": self.fields,
            "pictures": self.pictures,
            "views": self.views,
            "shard_size": self.shard_size,
            "shards": [self.path(shard).stat().st_size for shard in range(self.shards)],
            "summary": summary,
        }
        with self._writing(), _locked(self.directory):
            write_atomically(self.directory / "index.json", json.dumps(index, indent=1).encode())

    # ---- reading

    def read_index(self) -> dict[str, Any] | None:
        """The summary in index.json; None unless it is of this set and every shard is there in its full size."""
        path = self.directory / "index.json"
        if not path.exists():
            return None
        try:
            index = json.loads(path.read_text())
            if index["fingerprint"] != self.fingerprint:
                raise DataError(f"{path}: is of another set; move it away")
            for shard, size in enumerate(index["shards"]):
                file = self.path(shard)
                if not file.exists() or file.stat().st_size != size:
                    logging.warning("%s is missing or damaged and is made again", file)
                    return None
            return index["summary"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            logging.warning("%s is damaged and is made again: %s", path, error)
            return None

    def open(self) -> ArrayRecordDataSource:
        """The records by number, for sets that are whole."""
        return ArrayRecordDataSource(
            [f"{self.path(shard)}[0:{len(self.pictures_of(shard)) * self.views}]" for shard in range(self.shards)]
        )

    @staticmethod
    def unpack_data(record: bytes) -> bytes:
        """A picture's numbers. Raises LookupError, with the reason, for a picture that has none."""
        if record[:4] == _NONE:
            raise LookupError(record[4:].decode())
        if record[:4] != _DATA:
            raise ValueError(f"a record that begins with {record[:4]!r}")
        return record[4:]

    # ---- details

    def _partial(self, shard: int) -> Path:
        path = self.path(shard)
        return path.with_name(f".{path.name}.partial")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Says what a full disk means here."""
        try:
            yield
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise self._no_room(error=error) from error
            raise

    def _no_room(self, missing: list[int] | None = None, error: OSError | None = None) -> DataError:
        if missing is None:
            missing = [shard for shard in range(self.shards) if not self.path(shard).exists()]
        pictures = sum(len(self.pictures_of(shard)) for shard in missing)
        free = shutil.disk_usage(self.directory).free
        return DataError(
            f"{self.directory}: no room{f' ({error.strerror})' if error else ''}: the {pictures:,} pictures that are "
            f"not encoded yet need {_megabytes(self.room(missing))}, and {_megabytes(free)} are free. What was encoded "
            f"is kept: make room and run the same command again, or put it on another disk by {self.elsewhere}"
        )


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Waits for its turn to write in a directory, where the file system has locks."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_open(file: IO[bytes], path: Path) -> bool:
    """Whether a path still leads to an open file."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


@contextlib.contextmanager
def _errors_of_the_system() -> Iterator[None]:
    """ArrayRecord's errors, which come late and as text, as those of the operating system that they were."""
    try:
        yield
    except RuntimeError as error:
        for number in (*_NO_ROOM, errno.EIO, errno.EACCES, errno.EROFS):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number)) from error
        raise


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"

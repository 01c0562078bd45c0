"""Files that are there whole or not at all: in directories, and in buckets of Google Cloud Storage.

A path is a `pathlib.Path` or, for an address `gs://bucket/…`, an `etils.epath.Path`; `as_path` makes either.
A bucket has no directories, no links, no locks, and nothing in it is renamed or appended to: an object is put there as
a whole, which no reader meets half done.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from etils import epath

from zigma_jax.errors import ConfigError, MissingPackageError

AnyPath = Path | epath.Path

_PARTIAL = ".*.partial"
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def as_path(place: str | AnyPath) -> AnyPath:
    """The path of a place that somebody named: a directory or file, or an address `gs://bucket/…`.

    Raises:
        ConfigError: an address of another kind, or a bucket that does not answer.
        MissingPackageError: what reads buckets is not installed.
    """
    if isinstance(place, epath.Path) and "://" in str(place):
        return place
    if not _ADDRESS.match(str(place)):
        return Path(place)
    if isinstance(place, Path):
        raise ConfigError(f"{place}: a pathlib.Path holds no address; give the string to zigma_jax.files.as_path")
    if not re.match(r"gs://[^/]", str(place)):
        raise ConfigError(f"{place}: must be a directory, or an address gs://BUCKET/PATH; mount what lies elsewhere")
    from fsspec.config import conf

    # Checkpoints are written past fsspec, which would go on listing what it saw before.
    conf.setdefault("gs", {})["use_listings_cache"] = False
    path = epath.Path(place)
    try:
        path.exists()
    except ImportError as error:
        raise MissingPackageError(
            f"{place}: buckets are read by gcsfs, which is not installed: pip install 'zigma_jax[gcs]'"
        ) from error
    except Exception as error:  # no permission, no network, and what else libraries of the cloud raise
        raise ConfigError(f"{place}: cannot be read ({type(error).__name__}: {error})") from error
    return path


def in_bucket(path: AnyPath) -> bool:
    """Whether a path of `as_path` is an address."""
    return not isinstance(path, Path)


def check_local(path: str | Path, flag: str) -> None:
    """Raises ConfigError for a bucket's address where a directory is needed; it would become one called `gs:`."""
    if _ADDRESS.match(str(path)):
        raise ConfigError(f"--{flag}={path}: must be a directory; mount the bucket (gcsfuse, for one) and name that")


def write_atomically(path: str | AnyPath, data: bytes) -> None:
    """Replaces `path` by `data`: no reader, kill, full disk or power cut meets half of it.

    Raises OSError naming `path`, which is then as it was.
    """
    with open_atomically(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomically(path: str | AnyPath) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` at the end of the block, unless that raises. Errors as above."""
    path = as_path(path)
    if not isinstance(path, Path):
        with tempfile.TemporaryFile() as file:
            yield file
            put(file, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(partial)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def put(file: IO[bytes], path: AnyPath) -> None:
    """Writes what a file of this machine holds as an object. Raises OSError naming the object."""
    file.seek(0)
    try:
        with path.open("wb") as target:
            shutil.copyfileobj(file, target, 2**22)
    except Exception as error:  # libraries of the cloud have errors of their own
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        raise OSError(number, f"{type(error).__name__}: {error}", str(path)) from error


@contextlib.contextmanager
def read_locally(path: AnyPath) -> Iterator[Path]:
    """The file, or a copy of an object on this machine, for code that reads files alone."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        local = Path(directory) / path.name
        with path.open("rb") as source, open(local, "wb") as target:
            shutil.copyfileobj(source, target, 2**22)
        yield local


@contextlib.contextmanager
def written_locally(path: AnyPath) -> Iterator[Path]:
    """Where code that writes files alone may write what is to be at `path` after the block."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        local = Path(directory) / path.name
        yield local
        with open(local, "rb") as file:
            put(file, path)


class Mirror:
    """A directory of this machine that stands for one in a bucket, for what appends to files or takes no address.

    `push` puts every file that has changed since, as a whole. Of a directory that is no bucket's, it is the directory
    itself, and nothing has to be pushed.

    place: the directory. names: files of it that are to be gone on with.

    Attributes:
        local: where to write.
    """

    def __init__(self, place: AnyPath, names: Sequence[str] = ()):
        self._place, self._sent = place, dict[Path, tuple[int, int]]()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if isinstance(place, Path):
            self.local = place
            return
        self._temporary = tempfile.TemporaryDirectory(prefix="zigma_jax_")
        self.local = Path(self._temporary.name)
        for name in names:
            if (place / name).exists():
                (self.local / name).write_bytes((place / name).read_bytes())

    def push(self) -> None:
        """Puts what has changed. Raises OSError naming the object; the next call tries again."""
        if self._temporary is None:
            return
        for path in sorted(path for path in self.local.rglob("*") if path.is_file()):
            status = path.stat()
            state = status.st_size, status.st_mtime_ns
            if self._sent.get(path) != state:
                with open(path, "rb") as file:
                    put(file, self._place / path.relative_to(self.local).as_posix())
                self._sent[path] = state

    def close(self) -> None:
        """`push`, and removes the directory, if it is not the place itself."""
        try:
            self.push()
        finally:
            if self._temporary is not None:
                self._temporary.cleanup()


def make_directory(path: AnyPath) -> None:
    """Makes a directory and those above it. In a bucket there are none to make."""
    if isinstance(path, Path):
        path.mkdir(parents=True, exist_ok=True)


def remove_tree(path: AnyPath) -> None:
    """Removes a directory and everything below it; nothing if it is not there. Raises OSError."""
    if isinstance(path, Path):
        if path.exists():
            shutil.rmtree(path)
    elif path.exists():
        path.rmtree(missing_ok=True)


def files_below(directory: AnyPath) -> Iterator[Any]:
    """The files of a directory and of all below it, in any order."""
    for path in directory.iterdir():
        if path == directory:  # an empty object that stands for a directory
            continue
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


def sync_directory(path: str | AnyPath) -> None:
    """Waits until the names in a directory are on the disk, or the bytes of a file. In a bucket they are."""
    if isinstance(path, epath.Path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: str | AnyPath) -> None:
    """Waits until a directory and everything below it are on the disk."""
    if isinstance(directory, epath.Path):
        return
    for parent, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync_directory(Path(parent) / name)
        sync_directory(parent)


def sweep(directory: AnyPath) -> None:
    """Removes what writers that were killed left half written; only where nobody else can be writing now."""
    if isinstance(directory, Path):  # a bucket has none of that
        for path in directory.glob(_PARTIAL):
            path.unlink(missing_ok=True)

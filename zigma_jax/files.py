"""Files that are there whole or not at all."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from zigma_jax.errors import ConfigError

_PARTIAL = ".*.partial"


def check_local(path: str | Path, flag: str) -> None:
    """Raises ConfigError for a bucket's address, which would become a directory called `gs:`."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise ConfigError(f"--{flag}={path}: must be a directory; mount the bucket (gcsfuse, for one) and name that")


def write_atomically(path: str | Path, data: bytes) -> None:
    """Replaces `path` by `data`: no reader, kill, full disk or power cut meets half of it.

    Raises OSError naming `path`, which is then as it was.
    """
    with open_atomically(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomically(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` at the end of the block, unless that raises. Errors as above."""
    path = Path(path)
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


def sync_directory(path: str | Path) -> None:
    """Waits until the names in a directory are on the disk, or the bytes of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: str | Path) -> None:
    """Waits until a directory and everything below it are on the disk."""
    for parent, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync_directory(Path(parent) / name)
        sync_directory(parent)


def sweep(directory: str | Path) -> None:
    """Removes what writers that were killed left half written; only where nobody else can be writing now."""
    for path in Path(directory).glob(_PARTIAL):
        path.unlink(missing_ok=True)

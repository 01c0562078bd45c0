"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_atomically(path: str | Path, data: bytes) -> None:
    """Replaces `path` by `data`, through a file beside it: no reader, kill or power cut meets half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_directory(path.parent)


def sync_directory(path: str | Path) -> None:
    """Waits until the names in a directory are on the disk, as `os.fsync` does for a file's bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

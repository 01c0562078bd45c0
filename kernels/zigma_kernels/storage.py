"""Files of this package on the user's disk."""

import contextlib
import os
import secrets
from pathlib import Path


def cache_folder() -> Path:
    """Where what can be made again is kept: below $XDG_CACHE_HOME, or ~/.cache. It need not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "zigma_jax" / "kernels"


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` by `text`: no reader, kill or power cut meets half of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)

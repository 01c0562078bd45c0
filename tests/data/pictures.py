"""Encoded pictures and directories of them."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def picture(value: int, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    """An encoded picture of one grey."""
    out = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(out, kind)
    return out.getvalue()


def write(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """Writes files by relative path."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root

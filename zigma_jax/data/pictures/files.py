"""Which files of a directory are pictures, and one of them as pixels; every error names its file."""

import collections
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import UInt8

from zigma_jax.data.pictures.decode import decode, upright_size
from zigma_jax.data.pictures.pixels import center_crop
from zigma_jax.errors import DataError
from zigma_jax.files import AnyPath

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".apng",
    ".avif",
)
"""The endings of pictures, in any case."""

# Endings of pictures that nothing here reads: they are left out, but not without a word.
_UNREAD = (
    ".heic",
    ".heif",
    ".svg",
    ".psd",
    ".dng",
    ".raw",
    ".cr2",
    ".nef",
    ".arw",
    ".exr",
    ".tga",
    ".jxl",
    ".jp2",
    ".ico",
)
# What systems and programs leave among pictures: thumbnails, resource forks, bins. Hidden names begin with a dot.
_SYSTEM = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__")
)


def is_picture(name: str) -> bool:
    """Whether a file's name ends as a picture's."""
    return name.lower().endswith(SUFFIXES)


def find_pictures(root: Path) -> list[Path]:
    """The pictures in a directory and in all below it, in the order of their names.

    Links are followed, also to directories, but never in a circle. Hidden files and folders and those of the system
    are left out. What looks like a picture and is left out is logged.

    Raises:
        DataError: a directory that cannot be listed.
    """
    found: list[str] = []
    left_out: dict[str, list[str]] = collections.defaultdict(list)
    for top in list_visible(str(root)):
        if not is_directory(top):
            _add(top, found, left_out)
            continue
        # A directory counts once in each entry of the root: two classes may be links to the same one.
        seen, waiting = {_identity(str(root))}, [top]
        while waiting:
            directory = waiting.pop()
            if (identity := _identity(directory.path)) in seen:
                left_out["links to a directory that is there already"].append(directory.path)
                continue
            seen.add(identity)
            for entry in list_visible(directory.path):
                if is_directory(entry):
                    waiting.append(entry)
                else:
                    _add(entry, found, left_out)
    for reason, paths in left_out.items():
        logging.warning("%s: left out %d %s, such as %s", root, len(paths), reason, min(paths))
    return [Path(path) for path in sorted(found, key=lambda path: path.split(os.sep))]


def read_picture(path: AnyPath, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """A picture, cropped and resized as for training to `size`, or as large as it is.

    Raises:
        DataError: naming the file, whatever is wrong with it.
    """
    if size is None:
        return _naming(path, lambda content: np.asarray(decode(content)))
    return _naming(path, lambda content: center_crop(decode(content), size))


def read_size(path: AnyPath) -> tuple[int, int]:
    """(height, width) of a picture, upright, by its header alone. Raises as `read_picture`."""
    return _naming(path, upright_size)


def _naming[T](path: AnyPath, read: Callable[[bytes], T]) -> T:
    try:
        return read(path.read_bytes())
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # damage shows as any exception of the decoder
        raise DataError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def list_visible(directory: str | Path) -> list["os.DirEntry[str]"]:
    """The entries of a directory, less hidden ones and those of the system. Raises as `find_pictures`."""
    try:
        with os.scandir(directory) as entries:
            return [e for e in entries if not e.name.startswith(".") and e.name not in _SYSTEM]
    except OSError as error:
        raise DataError(f"{directory}: cannot be listed ({error.strerror})") from error


def is_directory(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a directory or leads to one."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _identity(directory: str) -> tuple[int, int]:
    status = os.stat(directory)
    return status.st_dev, status.st_ino


def _add(entry: "os.DirEntry[str]", found: list[str], left_out: dict[str, list[str]]) -> None:
    if is_picture(entry.name):
        if os.path.isfile(entry.path):
            found.append(entry.path)
        else:
            left_out["names of pictures that lead to no file"].append(entry.path)
    elif (suffix := os.path.splitext(entry.name)[1].lower()) in _UNREAD:
        left_out[f"{suffix} files, which are not read"].append(entry.path)

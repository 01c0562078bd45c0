"""Which files and directories of a folder are clips."""

import collections
import os
from pathlib import Path

from absl import logging

from zigma_jax.data.pictures.files import is_directory, is_picture, list_visible

MOVIES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv", ".ts", ".3gp")
ANIMATIONS = (".gif", ".webp", ".apng")
SUFFIXES = (*MOVIES, *ANIMATIONS)
"""The endings of clips, in any case."""


def is_clip(name: str) -> bool:
    """Whether a file's name ends as a clip's."""
    return name.lower().endswith(SUFFIXES)


def find_clips(root: Path) -> list[Path]:
    """The clips in a directory and in all below it, in the order of their names.

    A clip is a file of `SUFFIXES`, or a directory that holds single pictures, and neither clips nor directories: its
    frames. Links are followed, but never in a circle. Hidden files and folders and those of the system are left out;
    so are pictures beside clips, which is logged.

    Raises:
        DataError: a directory that cannot be listed.
    """
    found: list[str] = []
    left_out: list[str] = []
    seen: dict[str, set[tuple[int, int]]] = collections.defaultdict(set)  # a directory counts once below each entry
    waiting = [(str(root), "")]
    while waiting:
        directory, top = waiting.pop()
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen[top]:
            continue
        seen[top].add((status.st_dev, status.st_ino))
        entries = list_visible(directory)
        folders = [entry for entry in entries if is_directory(entry)]
        clips = [entry.path for entry in entries if is_clip(entry.name) and os.path.isfile(entry.path)]
        frames = [entry.path for entry in entries if is_picture(entry.name) and not is_clip(entry.name)]
        if frames and not clips and not folders:
            found.append(directory)
        else:
            found += clips
            left_out += frames
        waiting += [(folder.path, top or folder.path) for folder in folders]
    if left_out:
        logging.warning("%s: left out %d pictures beside clips, such as %s", root, len(left_out), min(left_out))
    return [Path(path) for path in sorted(found, key=lambda path: path.split(os.sep))]

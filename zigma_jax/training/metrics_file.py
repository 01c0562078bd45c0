"""metrics.jsonl: a line a log point, appended and never changed."""

import json
import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)


class MetricsFile:
    """Lines of JSON objects with a "step", ascending.

    start: the step that the run goes on from. What is there of later steps, or torn by a kill, is moved to the end of
        NAME.cut.jsonl beside it: each step is there once, and nothing is lost.
    """

    def __init__(self, path: Path, start: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_back(path, start)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed by `close`; a line is written at once
        self._unwritten = b""

    def append(self, line: str) -> None:
        """Writes a line. Raises OSError naming the file; the line is then written by the next call that can."""
        self._unwritten += line.encode() + b"\n"
        _append(self._file, self._unwritten, self.path)
        self._unwritten = b""

    def sync(self) -> None:
        """Waits until the lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def cut_file(name: str) -> str:
    """Where what is cut off the file `name` goes."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}.cut{dot}{suffix}"


def _append(file, data: bytes, path: Path) -> None:
    """All of `data`, or nothing of it."""
    size = os.fstat(file.fileno()).st_size
    try:
        written = 0
        while written < len(data):
            written += file.write(data[written:])
    except OSError as error:
        os.ftruncate(file.fileno(), size)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _cut_back(path: Path, start: int) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    kept = 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > start:
                break
        except (ValueError, KeyError, TypeError):
            _log.warning("%s, line %d is no log point: %.80r", path, number, line)
        kept += len(line)
    cut = content[kept:]
    if not cut:
        return
    aside = path.with_name(cut_file(path.name))
    with open(aside, "ab", buffering=0) as file:
        _append(file, cut if cut.endswith(b"\n") else cut + b"\n", aside)
        os.fsync(file.fileno())
    with open(path, "r+b") as file:
        file.truncate(kept)
        os.fsync(file.fileno())

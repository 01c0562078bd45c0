"""Fingerprints of weights, remembered between runs: hashing gigabytes at every start would be a waste.

What is remembered holds as long as every file's size and times are those it was computed with. It lies in a hidden
file beside the weights, where other machines that share the directory find it too; in the user's cache directory where
that directory is read-only, or is kept by a package manager or by the hub's cache.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_SETTLED = 2.0  # seconds: a file changed again within a file system's coarsest clock tick would keep its time
_MANAGED = {"site-packages", "dist-packages", "snapshots", "blobs"}  # whose folders are not ours to add files to


class FingerprintMemory:
    """What is remembered about some files of weights, which are as they were when this object was made.

    Args:
        files: all that the weights are read from.
    """

    def __init__(self, files: Sequence[Path]):
        self._files = [Path(os.path.realpath(file)) for file in files]
        self._state = self._look()

    def recall(self, key: str) -> str | None:
        """The fingerprint remembered under `key`, or None where there is none or a file has changed since."""
        for place in self._places():
            try:
                known = json.loads(place.read_text())
                if known["files"] == self._state and isinstance(known["fingerprints"][key], str):
                    return known["fingerprints"][key]
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    def remember(self, key: str, fingerprint: str) -> None:
        """Keeps the fingerprint if the files are still as they were; where it cannot be written, it is not kept."""
        newest = max(max(times) for _, _, *times in self._state)
        if self._look() != self._state or time.time_ns() - newest < _SETTLED * 1e9:
            return
        for place in self._places():
            fingerprints = {}
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                known = json.loads(place.read_text())
                fingerprints = dict(known["fingerprints"]) if known["files"] == self._state else {}
            data = json.dumps({"files": self._state, "fingerprints": fingerprints | {key: fingerprint}}, indent=1)
            with contextlib.suppress(OSError):
                _replace(place, data)
                return

    def _look(self) -> list[list]:
        """Name, size, and times of contents and of the file itself: no copy or `touch` can set the last one."""
        stats = [(file.name, os.stat(file)) for file in self._files]
        return [[name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats]

    def _places(self) -> list[Path]:
        """Where to look and to write, best first."""
        first = self._files[0]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zigma_jax" / "fingerprints"
        digest = hashlib.sha256("\n".join(map(str, self._files)).encode()).hexdigest()
        places = [cache / f"{digest[:32]}.json"]
        # The bits are asked for, as nothing is read-only to root.
        if not _MANAGED & set(first.parts) and first.parent.stat().st_mode & 0o222:
            places.insert(0, first.with_name(f".{first.name}.fingerprint"))
        return places


def _replace(path: Path, text: str) -> None:
    """Through a file of its own name, as several processes may do this at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise

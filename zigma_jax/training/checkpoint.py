"""Checkpoints: orbax behind one door, with checksums that are verified.

A checkpoint is a directory named by its step::

    40/state/        the arrays: an ordinary orbax PyTree checkpoint, which orbax alone can read
    40/leaves.json   shape, dtype and fingerprint of every array
    40/extra.json    what else a run needs to go on: config, data iterator
    40/SHA256SUMS    a checksum of every file above

It is written as `40.saving` and renamed when complete: it is there whole or not at all. In a bucket, where nothing is
renamed, SHA256SUMS is written last and removed first: a checkpoint without it is none. The directory is shared by all
processes, and every process makes the same calls in the same order.
"""

import base64
import contextlib
import errno
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from zigma_jax.files import AnyPath, in_bucket, make_directory, remove_tree, sync_directory, sync_tree
from zigma_jax.processes import from_primary
from zigma_jax.training.array_store import (
    CheckpointError,
    absolute,
    cause_of,
    check_same_model,
    flatten,
    handler,
    listed,
    load,
    nest,
    placed,
    read_array,
)
from zigma_jax.training.integrity import SUMS, check_file, check_sums, fingerprint, write_sums

_log = logging.getLogger(__name__)

_SMALL = ("leaves.json", "extra.json")


class Checkpointer:
    """Saves and restores the state of a run below `directory`.

    keep_last: so many of the newest checkpoints stay. keep_every: those whose step it divides stay for good.
    best: an attribute; the checkpoint of that step stays as long as it is the best, too.
    asynchronous: `save` returns once the arrays are copied to the host, and a thread writes them.
    Raises ValueError for a `keep_last` or `keep_every` below 1.
    """

    def __init__(
        self,
        directory: str | AnyPath,
        keep_last: int = 3,
        keep_every: int | None = None,
        asynchronous: bool = True,
    ):
        for field, value in (("keep_last", keep_last), ("keep_every", keep_every)):
            if value is not None and value < 1:
                raise ValueError(f"{field}={value}: must be at least 1")
        self.directory = absolute(directory)
        self.keep_last, self.keep_every, self.asynchronous = keep_last, keep_every, asynchronous
        self.best: int | None = None
        self._last: int | None = None  # the step that this run saved or restored last
        self._damaged: list[int] = []  # steps that `restore` passed over
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._orbax = ocp.AsyncCheckpointer(handler())

    # ---- saving

    def save(self, step: int, state: PyTree, extra: Mapping[str, Any] | None = None) -> bool:
        """Saves `state`, a tree of arrays, and `extra`, of which process 0's is written.

        extra: JSON values and bytes; a tuple comes back as a list. The arrays may be donated once this has
        returned.
        Returns False, having done nothing, if this very step is what the run saved or restored last.
        Raises TypeError for a leaf that is not an array and an extra that JSON cannot hold; CheckpointError
        if the save before failed, or if there is a checkpoint of this step or a later one, which must be
        another run's.
        A leaf that is not finite, a full disk and the like show while the thread writes: the next `save`,
        `wait` or `close` raises CheckpointError. Nothing is left of such a checkpoint, and the earlier ones
        are as they were.
        """
        self.wait()
        if step == self._last:
            return False
        leaves = flatten(state)
        for name, leaf in leaves.items():
            if not isinstance(leaf, jax.Array) or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
                raise TypeError(f"leaf {name} of the state is no plain array but {getattr(leaf, 'dtype', type(leaf))}")
        text = json.dumps(extra or {}, default=_bytes_to_json, indent=1)
        size = sum(leaf.nbytes for leaf in leaves.values())
        from_primary(lambda: self._prepare(step, size))
        self._damaged = []

        fingerprints = {name: fingerprint(leaf) for name, leaf in leaves.items()}  # enqueued before any donation
        table = {name: {"shape": leaf.shape, "dtype": str(leaf.dtype)} for name, leaf in leaves.items()}
        try:
            self._orbax.save(self._staging(step) / "state", args=ocp.args.PyTreeSave(nest(leaves)))
        except Exception as error:
            raise self._failure(step, error) from error
        self._last = step
        self._thread = threading.Thread(target=self._finish, args=(step, table, fingerprints, text), name="checkpoint")
        self._thread.start()
        if not self.asynchronous:
            self.wait()
        return True

    def sweep(self) -> None:
        """Removes what a killed run left half written, or half deleted. Only for the run that owns the directory."""
        for path in self._entries():
            half = path.name.isdecimal() and not _is_whole(path)
            if half or re.fullmatch(r"\d+\.(saving|deleted)", path.name):
                remove_tree(path)

    def wait(self) -> None:
        """Returns when nothing is being written any more. Raises CheckpointError if that failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error, self._last = self._error, None, None
            raise error

    def close(self) -> None:
        """`wait`, then gives orbax's threads back."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _staging(self, step: int) -> AnyPath:
        return self.directory / (str(step) if in_bucket(self.directory) else f"{step}.saving")

    def _entries(self) -> list[Any]:
        return list(self.directory.iterdir()) if self.directory.is_dir() else []

    def _prepare(self, step: int, size: int) -> None:
        """Clears what a killed run left, puts damaged checkpoints aside and makes the staging directory."""
        try:
            make_directory(self.directory)
            self.sweep()
            for damaged in self._damaged:
                aside = self.directory / f"{damaged}.damaged"
                remove_tree(aside)
                (self.directory / str(damaged)).rename(aside)
            if later := [s for s in self.steps() if s >= step]:
                raise CheckpointError(
                    f"cannot save step {step} under {self.directory}: steps {later} are there that "
                    "this run did not make; restore the latest, move them away, or choose another directory"
                )
            # Orbax, too, fails on a full disk, but its threads bury the reason under pages of tracebacks.
            if not in_bucket(self.directory) and (free := shutil.disk_usage(self.directory).free) < size:
                reason = f"{os.strerror(errno.ENOSPC)}: {size:,} bytes are needed, {free:,} are free"
                raise OSError(errno.ENOSPC, reason)
            make_directory(self._staging(step))
        except OSError as error:
            raise self._failure(step, error) from error

    def _finish(self, step: int, table: dict[str, dict], fingerprints: dict[str, jax.Array], extra: str) -> None:
        """The thread: waits for orbax, adds the other files, renames, deletes old checkpoints."""
        try:
            self._orbax.wait_until_finished()
            not_finite = []
            for name, value in fingerprints.items():
                table[name]["fingerprint"], flag = _split(value)
                not_finite += [name] if flag else []
            if not_finite:
                raise CheckpointError(f"not finite: {listed(not_finite)}")
            if jax.process_index() == 0:
                staging = self._staging(step)
                (staging / "leaves.json").write_text(json.dumps({"format": 1, "step": step, "leaves": table}, indent=1))
                (staging / "extra.json").write_text(extra)
                write_sums(staging)
                if not in_bucket(staging):
                    sync_tree(staging)
                    staging.rename(self.directory / str(step))
                    sync_directory(self.directory)
                self._delete_old()
        except Exception as error:
            self._error = self._failure(step, error)
            self._error.__cause__ = error

    def _delete_old(self) -> None:
        for step in self.steps()[: -self.keep_last]:
            if step == self.best or (self.keep_every is not None and step % self.keep_every == 0):
                continue
            path, doomed = self.directory / str(step), self.directory / f"{step}.deleted"
            try:  # it stops being a checkpoint first, so that a kill leaves no half of one
                if in_bucket(path):
                    (path / SUMS).unlink()
                    remove_tree(path)
                else:
                    remove_tree(path.rename(doomed))
            except OSError as error:  # what was to be saved is saved
                _log.warning("checkpoint %s, which is no longer needed, could not be deleted: %s", step, error)

    def _failure(self, step: int, cause: Exception) -> CheckpointError:
        if jax.process_index() == 0:
            with contextlib.suppress(Exception):  # as is likely where writing failed, too
                remove_tree(self._staging(step))
        return CheckpointError(f"could not save step {step} under {self.directory}: {cause_of(cause)}")

    # ---- restoring

    def steps(self) -> list[int]:
        """The steps of the checkpoints there are, ascending; whether they are sound is not looked at."""
        return sorted(int(path.name) for path in self._entries() if path.name.isdecimal() and _is_whole(path))

    def latest_step(self) -> int | None:
        """The last of `steps`, or None if there is none."""
        return max(self.steps(), default=None)

    def restore(self, abstract: PyTree, step: int | None = None, partial: bool = False) -> tuple[PyTree, dict, int]:
        """The newest sound checkpoint, or that of `step`: (state, extra, its step).

        abstract: the state's tree with, for leaves, `jax.ShapeDtypeStruct`s (or arrays) whose sharding says
        where to put them: any mesh, of any number of devices; without one, the first device. partial: the
        tree may lack leaves that the checkpoint has, and only its own are read (`{"ema": ...}` to sample).
        Every leaf is verified, and every file; of a partial one, the files beside the arrays. A damaged checkpoint is
        reported in a warning of `logging` and the one before is used, unless `step` was named; the next `save` renames
        it to `<step>.damaged`.
        Raises CheckpointError if there is none, or none that is sound, saying of each what is wrong, and if its leaves
        are not those of `abstract`, naming them.
        """
        self.wait()
        wanted = {name: placed(leaf) for name, leaf in flatten(abstract).items()}
        steps = from_primary(self.steps)
        if not steps:
            raise CheckpointError(f"there is no checkpoint under {self.directory}")
        if step is not None:
            if step not in steps:
                there = listed([str(known) for known in steps])
                raise CheckpointError(f"there is no checkpoint of step {step} under {self.directory}, but of {there}")
            steps = [step]
        failures: dict[int, str] = {}
        for candidate in reversed(steps):
            path = self.directory / str(candidate)
            found = from_primary(lambda path=path: _inspect(path, partial))
            problems, leaves = found["problems"], {}
            if not problems:
                check_same_model(wanted, found["leaves"], path, partial)
                leaves, problems = self._read(path, wanted, found["leaves"])
            if not problems:
                self._last, self._damaged = candidate, list(failures)
                if failures:
                    _log.warning("using checkpoint %s instead", path)
                state = jax.tree.unflatten(jax.tree.structure(abstract), leaves.values())
                return state, json.loads(found["extra"], object_hook=_bytes_from_json), candidate
            failures[candidate] = "; ".join(problems)
            _log.warning("checkpoint %s is damaged and will not be used: %s", path, failures[candidate])
        listing = "".join(f"\n  {step}: {problem}" for step, problem in failures.items())
        raise CheckpointError(f"no sound checkpoint under {self.directory}:{listing}")

    def read_extra(self) -> dict[str, Any]:
        """The newest sound extra: a run's config, say, before its state can be described.

        Raises CheckpointError if there is none.
        """
        self.wait()

        def read() -> str:
            for step in reversed(self.steps()):
                path = self.directory / str(step)
                if not (problems := check_file(path, "extra.json")):
                    return (path / "extra.json").read_text()
                _log.warning("checkpoint %s is damaged: %s", path, problems[0])
            raise CheckpointError(f"there is no sound checkpoint under {self.directory}")

        return json.loads(from_primary(read), object_hook=_bytes_from_json)

    def _read(self, path: AnyPath, wanted: dict, stored: dict) -> tuple[dict[str, jax.Array], list[str]]:
        """The leaves of `wanted`, in its order, and what is wrong with them by `stored`'s fingerprints."""
        try:
            leaves = load(self._orbax, path / "state", wanted)
        except Exception as error:
            if jax.process_count() > 1:
                raise  # the other processes may have read theirs and would go another way
            return {}, [f"{listed(list(wanted))} cannot be read ({cause_of(error)})"]
        prints = {name: fingerprint(leaf) for name, leaf in leaves.items()}
        bad = [name for name, value in prints.items() if _split(value)[0] != stored[name]["fingerprint"]]
        return leaves, [f"{listed(bad)} do not match their fingerprints"] if bad else []


def _is_whole(path: AnyPath) -> bool:
    return not in_bucket(path) or (path / SUMS).exists()


def _inspect(path: AnyPath, partial: bool) -> dict[str, Any]:
    """Verifies the files of a checkpoint and reads the small ones.

    partial: only those. Of the others nobody knows beforehand which bytes of them will be needed; the arrays that are
    read have their fingerprints.
    """
    problems = [line for name in _SMALL for line in check_file(path, name)] if partial else check_sums(path)
    if problems:
        return {"problems": problems + _leaves_hit(path)}
    manifest = json.loads((path / "leaves.json").read_text())
    if path.name != str(manifest["step"]):
        return {"problems": [f"it was saved at step {manifest['step']}"]}
    return {"problems": [], "leaves": manifest["leaves"], "extra": (path / "extra.json").read_text()}


def _leaves_hit(path: AnyPath) -> list[str]:
    """Which leaves the damage of a checkpoint's files reached, as far as that can still be told."""
    if check_file(path, "leaves.json"):
        return []
    hit = []
    for name, entry in json.loads((path / "leaves.json").read_text())["leaves"].items():
        try:
            sound = _split(fingerprint(jnp.asarray(read_array(path / "state", name))))[0] == entry["fingerprint"]
        except Exception:
            sound = False
        hit += [] if sound else [name]
    return [f"leaves hit: {listed(hit)}"] if hit else []


def _split(value: jax.Array) -> tuple[str, bool]:
    """A fingerprint as it is written down, and whether its array holds anything not finite."""
    first, second, not_finite = np.asarray(value).tolist()
    return f"{first:08x}{second:08x}", bool(not_finite)


def _bytes_to_json(value: Any) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    raise TypeError(f"extra holds {value!r}, which is neither JSON nor bytes")


def _bytes_from_json(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["__bytes__"]) if value.keys() == {"__bytes__"} else value

"""The processes of a run: how they start together, agree, wait for each other, and end together.

What is said here goes through the coordinator, the small server in process 0 that `jax.distributed` starts, and never
through the devices: it waits for nothing that they are at. All processes make these calls in the same order.
"""

import atexit
import hashlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the coordinator's store of keys has no public name

from zigma_jax.errors import ConfigError, ProcessesError, UserError

START = 300  # seconds that the processes have to come together,
BARRIER = 600  # to come to a barrier,
HEARTBEAT = 30  # and after which one that gives no sign of life counts as dead
_LOOK = 0.5  # seconds between two looks at whether another process has failed
_SLICE = 5.0  # seconds that one question to the coordinator waits at most

_numbers = itertools.count()  # of what is said; the same on all processes
_failing = threading.Event()


def join(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None, limit: int = START
) -> None:
    """Joins the other processes of the run; before anything is asked of the devices.

    Without arguments, what SLURM, Open MPI, a TPU pod or GKE says of the processes is found.

    Args:
        coordinator: HOST:PORT of process 0. processes: how many there are. process_id: which one this is.
        limit: seconds to wait for the others.

    Raises:
        ProcessesError: the others did not come, or what there is of them cannot be found.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    place = f"the coordinator at {coordinator}" if coordinator else "the coordinator"
    if coordinator and process_id:  # C++ would end the program without a word to catch
        _reach(coordinator, limit)
    try:
        jax.distributed.initialize(
            coordinator, processes, process_id, initialization_timeout=limit, heartbeat_timeout_seconds=HEARTBEAT
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ProcessesError(
            f"--distributed: {place} and the other processes did not come together within {limit} s ({reason[:300]}). "
            "Start the same command on every host; where no scheduler says which they are, give --coordinator="
            "HOST:PORT, --processes and --process_id"
        ) from error
    _watch()


def check_alike(about: Mapping[str, Any]) -> None:
    """Raises ConfigError on all processes unless `about`, JSON by name, and the code are the same on all of them."""
    if count() == 1:
        return
    mine = {**about, "version of jax": jax.__version__, "code of zigma_jax": code_digest()}
    said = gather(json.loads(json.dumps(mine, default=str)), "start")
    for number, other in enumerate(said):
        if names := [name for name in said[0] | other if said[0].get(name) != other.get(name)]:
            lines = [f"  {name}: {said[0].get(name)!r} on 0, {other.get(name)!r} on {number}" for name in names]
            raise ConfigError(f"processes 0 and {number} were not started alike:\n" + "\n".join(lines))


def code_digest() -> str:
    """SHA-256 of the source files of zigma_jax and zigma_kernels, the first 12 digits."""
    import zigma_kernels

    digest = hashlib.sha256()
    for package in (Path(__file__).parent, Path(zigma_kernels.__file__).parent):
        for path in sorted(package.rglob("*.py")):
            digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def count() -> int:
    """How many processes have joined; known before the devices are."""
    return distributed.global_state.num_processes if distributed.global_state.client is not None else 1


def index() -> int:
    """Which of them this is."""
    return distributed.global_state.process_id if distributed.global_state.client is not None else 0


def from_primary(f: Callable[[], Any]) -> Any:
    """What `f` returns (JSON) on process 0, on every process; what it raises there is raised on all of them.

    The others wait as long as process 0 lives.
    """
    if count() == 1:
        return f()
    key = f"zigma_jax/primary/{next(_numbers)}"
    if index() > 0:
        reply = json.loads(_get(key))
        if "error" in reply:
            raise _error(reply["type"])(reply["error"])
        return reply["value"]
    try:
        reply = {"value": f()}
    except Exception as error:
        _set(key, json.dumps({"error": str(error), "type": type(error).__name__}))
        raise
    text = json.dumps(reply)
    _set(key, text)
    return json.loads(text)["value"]


def primary_first[T](f: Callable[[], T]) -> T:
    """What `f` returns, which process 0 calls before the others do: it may make what they will find.

    Raises on the others, too, what it raised on process 0.
    """
    if count() == 1:
        return f()
    if index() > 0:
        from_primary(lambda: None)
        return f()
    made: list[T] = []
    from_primary(lambda: made.append(f()))
    return made[0]


def gather(value: Any, name: str, limit: float | int = BARRIER) -> list[Any]:
    """What every process says (JSON), in their order. It is a barrier, too: nobody goes on before all have come.

    Raises:
        ProcessesError: some did not come to `name` within `limit` seconds; it says which.
    """
    if count() == 1:
        return [value]
    number, everyone = next(_numbers), range(count())
    _set(f"zigma_jax/all/{number}/{index()}", json.dumps({"name": name, "value": value}))
    end = time.monotonic() + limit
    said = [_get(f"zigma_jax/all/{number}/{other}", end) for other in everyone]
    if missing := [str(other) for other in everyone if said[other] is None]:
        raise ProcessesError(
            f"{name}: process{'es' * (len(missing) > 1)} {', '.join(missing)} of {len(everyone)} did not come within "
            f"{limit:g} s"
        )
    replies = [json.loads(text or "") for text in said]
    if other := [f"process {i} is at {reply['name']!r}" for i, reply in enumerate(replies) if reply["name"] != name]:
        raise ProcessesError(f"the processes have lost step: {', '.join(other)}, and this one at {name!r}")
    return [reply["value"] for reply in replies]


def barrier(name: str, limit: float | int = BARRIER) -> None:
    """Waits until all processes have come here; raises as `gather`."""
    gather(None, name, limit)


def fail(message: str) -> None:
    """Tells the other processes that this one cannot go on, and why; they end, too."""
    if count() == 1 or _failing.is_set():
        return
    _failing.set()
    try:
        _set("zigma_jax/failed", f"process {index()} failed: {message}")
    except Exception as error:  # the coordinator has gone
        print(f"the other processes could not be told: {error}", file=sys.stderr)
    if index() == 0:
        time.sleep(4 * _LOOK)  # the coordinator ends with this process: the others look first


def _watch() -> None:
    """Ends this process, with a word, once another one has failed."""
    over = threading.Event()
    atexit.register(over.set)  # before the connection is closed: what was registered last is called first

    def look() -> None:
        while not over.wait(_LOOK):
            if _failing.is_set():
                return
            try:
                message = _client().key_value_try_get("zigma_jax/failed")
            except Exception:  # nobody has
                continue
            if _failing.is_set():
                return
            print(f"\nerror: {message}", file=sys.stderr, flush=True)
            os._exit(1)

    threading.Thread(target=look, name="processes", daemon=True).start()


def _reach(coordinator: str, limit: float | int) -> None:
    """Raises ProcessesError unless something listens at HOST:PORT within `limit` seconds."""
    import socket

    host, _, port = coordinator.rpartition(":")
    end, error = time.monotonic() + limit, None
    while time.monotonic() < end:
        try:
            socket.create_connection((host, int(port)), timeout=min(_SLICE, limit)).close()
            return
        except (OSError, ValueError, OverflowError) as failure:
            error = failure
            time.sleep(0.2)
    raise ProcessesError(f"--coordinator={coordinator}: nothing answers there within {limit:g} s ({error})")


def _client() -> Any:
    return distributed.global_state.client


def _set(key: str, text: str) -> None:
    _client().key_value_set(key, text)


def _get(key: str, end: float | None = None) -> Any:
    """The value of a key, once it has one; None if it has none by the time `end`."""
    while True:
        left = _SLICE if end is None else min(_SLICE, end - time.monotonic())
        try:
            return _client().blocking_key_value_get(key, max(int(1000 * left), 1))
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            if end is not None and time.monotonic() >= end:
                return None


def _error(name: str) -> type[Exception]:
    """The class of a `UserError` by its name; RuntimeError for any other."""
    known: list[type[Exception]] = [UserError]
    for kind in known:
        known += kind.__subclasses__()
    return next((kind for kind in known if kind.__name__ == name), RuntimeError)


def allgather(tree: Any) -> Any:
    """Arrays of all processes, stacked in their order; of equal shapes, through the devices."""
    from jax.experimental import multihost_utils

    if count() == 1:
        return jax.tree.map(lambda x: np.asarray(x)[None], tree)
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree))

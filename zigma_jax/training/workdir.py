"""A run's directory: who owns it, which model it is of."""

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from zigma_jax.errors import ConfigError
from zigma_jax.files import AnyPath, as_path, make_directory, sweep, write_atomically
from zigma_jax.processes import from_primary
from zigma_jax.training.config import RunConfig
from zigma_jax.training.parse_config import from_dict, to_dict

_log = logging.getLogger(__name__)

LOCK = ".lock"
CONFIG = "config.json"
_BEAT = 2.0  # seconds between the signs of life that stand for a lock where there are none,
_BEAT_IN_BUCKET = 10.0  # and in a bucket, where each is an object that is written
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

# What decides what the arrays of a checkpoint mean, but for those fields that only decide how fast.
_BINDING = (
    *("model", "interpolant", "latent.fingerprint", "latent.scale", "latent.shift", "text.fingerprint"),
    *("train.ema_lengths", "optimizer.algorithm"),  # what the state is made of
)
_FREE = {
    "model.condition_scale",  # of the first step alone
    "model.dtype",
    "model.drop_path_rate",
    "model.remat",
    "model.scan_implementation",
    "model.unroll",
}


@contextlib.contextmanager
def owned(workdir: AnyPath) -> Iterator[None]:
    """Makes `workdir`, keeps other runs out of it, and removes what killed ones left half written.

    The lock is the operating system's (`flock`) on `.lock`, which says in words who holds it: it ends with the
    process, however that ends. Where the file system has no locks, which a warning says, and in a bucket, the owner
    gives a sign of life instead, every two seconds or every ten, and whoever comes later waits for one.

    Raises:
        ConfigError: another run is at work there, on this machine or another.
    """
    workdir = as_path(workdir)
    with contextlib.ExitStack() as held:
        from_primary(lambda: _take(workdir, held))
        yield


def _take(workdir: AnyPath, held: contextlib.ExitStack) -> None:
    make_directory(workdir)
    lock = workdir / LOCK
    held.enter_context(_lock(lock) if isinstance(lock, Path) else _lock_in_bucket(lock))
    for directory in (workdir, workdir / "previews"):
        sweep(directory)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _flock(descriptor, path)
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                break
        except FileNotFoundError:
            pass  # its owner has just let it go, and removed it
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(_owner()).encode(), 0)
    ended = threading.Event()
    if not locked:
        threading.Thread(target=_live, args=(path, ended), name="lock", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        path.unlink(missing_ok=True)  # while it is still locked, so that nobody else's is removed
        os.close(descriptor)


def _flock(descriptor: int, path: Path) -> bool:
    """True: locked. False: the file system has no locks, and nobody gives a sign of life."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        raise _refusal(path) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("%s: this file system has no locks (%s); a sign of life stands for one", path, error.strerror)
    if path.stat().st_size:
        first = _beat(path)
        for _ in range(4):
            time.sleep(_BEAT / 2)
            if _beat(path) != first:
                raise _refusal(path)
    return False


def _live(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _beat(path: Path) -> int:
    with open(path, "rb") as file:  # opening asks the server of a network file system; `stat` alone may not
        return os.fstat(file.fileno()).st_mtime_ns


@contextlib.contextmanager
def _lock_in_bucket(path: AnyPath) -> Iterator[None]:
    """An object that its owner writes anew every `_BEAT_IN_BUCKET` seconds. Of two who come at once, the last to write
    it stays."""
    if path.exists():
        first = _content(path)
        for _ in range(5):
            time.sleep(_BEAT_IN_BUCKET / 2)
            if (now := _content(path)) != first and now:
                raise _refusal(path)
    owner = _owner() | {"key": secrets.token_hex(8)}

    def beat(count: int) -> None:
        write_atomically(path, json.dumps(owner | {"beat": count}).encode())

    def is_ours() -> bool:
        return owner["key"].encode() in _content(path)

    beat(0)
    time.sleep(_BEAT_IN_BUCKET / 5)
    if not is_ours():
        raise _refusal(path)
    ended = threading.Event()

    def live() -> None:
        for count in itertools.count(1):
            if ended.wait(_BEAT_IN_BUCKET):
                return
            try:
                if not is_ours():
                    _log.error("%s: another run has taken this one for dead; end one of them", path)
                    return
                beat(count)
            except Exception as error:  # the network's; the next one may succeed
                _log.warning("%s: no sign of life could be given: %s", path, error)

    thread = threading.Thread(target=live, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if is_ours():
            path.unlink(missing_ok=True)


def _content(path: AnyPath) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def _refusal(path: AnyPath) -> ConfigError:
    try:
        owner = json.loads(path.read_text())
        who = f"process {owner['process']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return ConfigError(f"{path.parent} is in use by {who}: wait for it to end, stop it, or choose another directory")


def check_same_run(config: RunConfig, saved: dict[str, Any], workdir: AnyPath) -> list[str]:
    """Compares with the configuration in a checkpoint, which binds the workdir. Returns what else changed, in lines.

    Raises:
        ConfigError: the checkpoint is of another model.
    """
    with contextlib.suppress(ValueError, OSError):  # of another version, with other fields: compared as it is
        saved = to_dict(from_dict(saved))
    old, new = _flat(saved), _flat(to_dict(config))
    changed = [name for name in new if _plain(old.get(name)) != _plain(new[name])]
    lines = [f"  {name}: {old.get(name)!r} in the workdir, {new[name]!r} now" for name in changed]
    binding = [name for name in changed if name.startswith(tuple(f"{part}." for part in _BINDING)) or name in _BINDING]
    if other := [name for name in binding if name not in _FREE]:
        raise ConfigError(
            f"--workdir={workdir} holds a run of another model ({', '.join(other)} differ); choose another "
            "workdir, or the configuration it was made with:\n" + "\n".join(lines)
        )
    return lines


def write_config(config: RunConfig, workdir: AnyPath) -> None:
    """Writes config.json, on process 0: for people and other programs. A run itself goes by its checkpoints."""
    if jax.process_index() > 0:
        return
    path = workdir / CONFIG
    if path.exists():
        try:
            if not isinstance(json.loads(path.read_bytes()), dict):
                raise ValueError("no object")
        except ValueError as error:
            _log.warning("%s was empty or damaged (%s), and is written anew", path, error)
    write_atomically(path, json.dumps(to_dict(config), indent=1).encode())


def _flat(config: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{field}": value for section, fields in config.items() for field, value in fields.items()}


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))

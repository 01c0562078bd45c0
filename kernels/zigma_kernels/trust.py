"""Kernels are trusted by proof.

A compiled kernel is right on the devices on which it was seen to be right. `VERIFIED` lists these: the kernel by a
fingerprint of its sources and of the compiler's version, and the kind of device. On another kind of device, the first
default choice of the kernel compares its values and gradients with those of `xla` on a few small cases, which takes
seconds. What came of it is kept in the user's cache directory, and holds until the kernel, the versions or the device
change. Where they differ, a warning says so and the next implementation is taken.

A kernel that is asked for by name is not checked. `python -m zigma_kernels.verify` checks all of them thoroughly.
"""

import functools
import hashlib
import importlib
import importlib.metadata
import json
import logging
import threading
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from zigma_kernels import agreement
from zigma_kernels.cpu import library
from zigma_kernels.storage import cache_folder, write_atomically

# (op, implementation, fingerprint, kind of device): printed by `python -m zigma_kernels.verify` where all went well.
VERIFIED: frozenset[tuple[str, str, str, str]] = frozenset()

_SHARED = ("partitioned.py", "visiting.py")
SOURCES = {  # what the fingerprint of a kernel is of
    ("selective_scan", "mosaic_gpu"): ("selective_scan/mosaic_*.py", "mosaic_lanes.py", *_SHARED),
    ("selective_scan", "triton"): ("selective_scan/triton_*.py", *_SHARED),
    ("selective_scan", "cpu"): ("selective_scan/cpu.py", "cpu/*", *_SHARED),
    ("causal_conv", "mosaic_gpu"): ("causal_conv/mosaic_*.py", "mosaic_lanes.py", *_SHARED),
    ("causal_conv", "cpu"): ("causal_conv/cpu.py", "cpu/*", *_SHARED),
}
_COMPILERS = ("jax", "jaxlib", "triton", "jax-triton")
_log = logging.getLogger(__name__)
_lock = threading.Lock()
_verdicts: dict[tuple[str, ...], str] = {}  # of this process: what is wrong with a kernel, "" for nothing


def require(op: str, implementation: str, devices: Sequence[Any]) -> None:
    """Raises NotImplementedError, with the reason, if a kernel was found to be wrong on these devices.

    The first call checks it, unless that is known already, on the first of the devices that is this process's.
    """
    if (op, implementation) not in SOURCES or (device := _local(devices)) is None:
        return
    if device.platform == "cpu":
        library.require()
    kernel = op, implementation, fingerprint(op, implementation), kind_of(device)
    if kernel in VERIFIED:
        return
    with _lock:
        new = kernel not in _verdicts
        if new:
            kept = _recall(kernel)
            _verdicts[kernel] = _examine(kernel, device) if kept is None else kept
    if not (verdict := _verdicts[kernel]):
        return
    reason = f"found to be wrong on {kernel[-1]}: {verdict}"
    if new:
        message = f"{op}: {implementation} is not used, it was {reason}. The next implementation takes its place."
        message += " `python -m zigma_kernels.verify` shows more."
        message += f" This is remembered in {_file(kernel)}." if _file(kernel).exists() else ""
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    if device.platform == "cpu":
        library.refuse(reason)
    raise NotImplementedError(reason)


def _local(devices: Sequence[Any]) -> Any | None:
    """The first that this process can compute on."""
    return next((x for x in devices if isinstance(x, jax.Device) and x.process_index == jax.process_index()), None)


@functools.cache
def fingerprint(op: str, implementation: str) -> str:
    """Of an implementation's sources, and of the versions of what compiles them."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for pattern in SOURCES.get((op, implementation), (f"{op}/*.py", "mosaic_lanes.py", "cpu/*", *_SHARED)):
        for path in sorted(path for path in here.glob(pattern) if path.suffix in (".py", ".cc", ".h")):
            digest.update(path.read_bytes())
    for package in _COMPILERS:
        try:
            digest.update(f"{package} {importlib.metadata.version(package)}".encode())
        except importlib.metadata.PackageNotFoundError:
            continue
    return digest.hexdigest()[:16]


def kind_of(device: Any) -> str:
    """The kind of a device. Of a CPU it names the library that was compiled for it, since that depends on much."""
    return f"CPU {library.digest()[:16]}" if device.platform == "cpu" else device.device_kind


def compare(op: str, implementation: str, cases: Iterable[Any]) -> str:
    """How an implementation differs from `xla` on the default device; "" if it agrees, twice with the same bits."""
    for case in cases:
        arguments = case.arguments()
        run = agreement.outputs_and_gradients(op, case, implementation, arguments)
        found = run()
        if not agreement.same_bits(found, run()):
            return f"two runs differ in case {case.name!r}"
        exact = {name: x.astype("float32") for name, x in arguments.items()}
        expected = agreement.outputs_and_gradients(op, case, "xla", exact)()
        name, error = max(agreement.errors(found, expected).items(), key=lambda pair: pair[1])
        if not error <= 2 * agreement.tolerance(case):  # that of either
            return f"{name} differs from that of xla by {error:.1e} of its largest entry, in case {case.name!r}"
    return ""


def _examine(kernel: tuple[str, ...], device: Any) -> str:
    """What is wrong with a kernel, "" for nothing; kept for later processes."""
    op, implementation, _, kind = kernel
    cases = importlib.import_module(f"zigma_kernels.{op}.cases").FIRST_USE
    verdict, lasting = "", True

    def check():
        nonlocal verdict, lasting
        try:
            with jax.default_device(device):
                verdict = compare(op, implementation, cases)
        except Exception as error:
            lasting = "RESOURCE_EXHAUSTED" not in str(error)  # there may be room the next time
            verdict = f"it fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"

    # A kernel is often chosen while a program is traced. A thread of its own knows nothing of that trace, nor of the
    # meshes and settings that hold there.
    thread = threading.Thread(target=check, name=f"check of {op} by {implementation}", daemon=True)
    thread.start()
    thread.join()
    _log.info("%s: %s checked on %s: %s", op, implementation, kind, verdict or "it agrees with xla")
    if lasting:
        try:
            write_atomically(_file(kernel), json.dumps({"kernel": kernel, "wrong": verdict}, indent=1) + "\n")
        except OSError as error:
            _log.info("not remembered: %s", error)
    return verdict


def _recall(kernel: tuple[str, ...]) -> str | None:
    """What an earlier process found; None if there was none, or its file cannot be read."""
    try:
        kept = json.loads(_file(kernel).read_text(encoding="utf-8"))
        verdict = kept["wrong"] if kept["kernel"] == list(kernel) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return verdict if isinstance(verdict, str) else None


def _file(kernel: tuple[str, ...]) -> Path:
    return cache_folder() / "checked" / f"{hashlib.sha256(repr(kernel).encode()).hexdigest()[:32]}.json"

"""How an op's `implementation` argument is followed, and how to see what was chosen."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax

from zigma_kernels import trust

type Implementation = Callable[..., Any]

CHOSEN = "chosen"
VARIABLES = {"selective_scan": "ZIGMA_SCAN", "causal_conv": "ZIGMA_CONV", "ssd": "ZIGMA_SSD"}  # name an implementation
_log = logging.getLogger(__name__)
_target: ContextVar[Sequence[Any]] = ContextVar("target", default=())  # the devices that `compiling_for` names
_findings: ContextVar[dict[str, str] | None] = ContextVar("findings", default=None)  # `explain` listens here


@dataclass(frozen=True)
class NvidiaKernel:
    """An implementation for NVIDIA GPUs, chosen by default only where there is one.

    Asked for by name, it can be lowered for CUDA on any machine.

    Attributes:
        run: the implementation.
        capability: the lowest compute capability that it runs on, (9, 0) for Hopper.
    """

    run: Implementation
    capability: tuple[int, int]

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)

    def require_device(self) -> None:
        require_nvidia_gpu(self.capability)


@dataclass(frozen=True)
class CpuKernel:
    """An implementation for CPUs, chosen by default only where JAX computes on one and it could be compiled.

    Asked for by name, it runs on the CPU that every machine has.

    Attributes:
        run: the implementation.
    """

    run: Implementation

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)

    def require_device(self) -> None:
        if any(getattr(device, "platform", None) != "cpu" for device in _default_devices()):
            raise NotImplementedError(f"needs a CPU; the default device is {_default_devices()[0].device_kind}")


def dispatch(op: str, implementations: Mapping[str, Implementation], name: str | None, *args: Any) -> Any:
    """Calls the implementation called `name`, or with None the first that supports the device and the call.

    An implementation raises NotImplementedError for a call that it does not support. What was chosen by
    default, and why not those before it, is logged at level DEBUG; `explain` returns it. A variable of the environment
    (`VARIABLES`) can name the implementation of all calls that leave it to the default; it is read as a program is
    traced.

    Raises:
        ValueError: no implementation has that name.
        NotImplementedError: the named implementation, or every one, does not support the call.
    """
    if name is not None:
        if name not in implementations:
            raise ValueError(f"{op}: unknown implementation {name!r}; known: {', '.join(implementations)}")
        return implementations[name](*args)
    if forced := os.environ.get(variable := VARIABLES.get(op, "")):
        if forced not in implementations:
            raise ValueError(f"{variable}={forced}: unknown implementation; known: {', '.join(implementations)}")
        if (heard := _findings.get()) is not None:
            heard.update(dict.fromkeys(implementations, f"{variable}={forced}") | {forced: CHOSEN})
        return implementations[forced](*args)
    findings = {}
    for candidate, implementation in implementations.items():
        try:
            if isinstance(implementation, NvidiaKernel | CpuKernel):
                implementation.require_device()
                if not _target.get():  # devices that are not here cannot be asked
                    trust.require(op, candidate, _default_devices())
            result = implementation(*args)
        except NotImplementedError as reason:
            findings[candidate] = str(reason)
            continue
        findings[candidate] = CHOSEN
        _log.debug("%s: %s", op, findings)
        if (heard := _findings.get()) is not None:
            heard.update(dict.fromkeys(implementations, "ranks below the one chosen") | findings)
        return result
    reasons = "; ".join(f"{candidate}: {reason}" for candidate, reason in findings.items())
    raise NotImplementedError(f"{op}: no implementation supports this call. {reasons}")


def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, str]:
    """Which implementation `op(*args, **kwargs)` uses on this machine, and why not the others.

        explain(selective_scan, u, dt, A, B, C)
        {"mosaic": "needs an NVIDIA GPU …", "xla": "chosen", "reference": "ranks below the one chosen"}

    Nothing is computed; `jax.ShapeDtypeStruct`s can stand for arrays. `implementation`, if given, is ignored.
    """
    leaves, tree = jax.tree.flatten((args, kwargs | {"implementation": None}))
    traced = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array | jax.ShapeDtypeStruct)}

    def call(traced):
        args, kwargs = tree.unflatten([traced.get(i, x) for i, x in enumerate(leaves)])
        return op(*args, **kwargs)

    findings: dict[str, str] = {}
    token = _findings.set(findings)
    try:
        jax.eval_shape(call, traced)
    finally:
        _findings.reset(token)
    return findings


def require_nvidia_gpu(capability: tuple[int, int]) -> None:
    """Raises NotImplementedError unless JAX computes by default on NVIDIA GPUs of at least this compute capability."""
    wanted = f"needs an NVIDIA GPU of compute capability {capability[0]}.{capability[1]} or higher"
    found = nvidia_capability()
    if found is None:
        raise NotImplementedError(f"{wanted}; the default device is {_default_devices()[0].device_kind}")
    if found < capability:
        raise NotImplementedError(f"{wanted}; here it is {found[0]}.{found[1]}")


def platform() -> str:
    """Where JAX computes by default, or what is compiled for: "cpu", "gpu", "cuda", "tpu" …"""
    return _default_devices()[0].platform


def nvidia_capability() -> tuple[int, int] | None:
    """The lowest compute capability of the GPUs that JAX uses by default; None if they are not NVIDIA's."""
    versions = [str(getattr(device, "compute_capability", "")) for device in _default_devices()]
    if not all(re.fullmatch(r"\d+\.\d+", version) for version in versions):  # AMD's have names
        return None
    return min((int(major), int(minor)) for major, minor in (version.split(".") for version in versions))


@contextlib.contextmanager
def compiling_for(*devices: Any) -> Iterator[None]:
    """Inside, what is traced takes the implementations that these devices, which need not be here, would take.

    devices: each has `platform`, `device_kind` and, of NVIDIA's, `compute_capability`, as "9.0".
    """
    token = _target.set(devices)
    try:
        yield
    finally:
        _target.reset(token)


def _default_devices():
    if _target.get():
        return _target.get()
    default = jax.config.jax_default_device  # None, a platform's name or a device
    return [default] if isinstance(default, jax.Device) else jax.devices(default)

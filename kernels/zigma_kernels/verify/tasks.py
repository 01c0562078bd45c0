"""What is verified on a machine, the most wanted first."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zigma_kernels.bench.limits import LARGEST_ON_CPU
from zigma_kernels.causal_conv import IMPLEMENTATIONS as CONV_IMPLEMENTATIONS
from zigma_kernels.causal_conv import cases as conv_cases
from zigma_kernels.dispatch import CpuKernel, NvidiaKernel
from zigma_kernels.selective_scan import IMPLEMENTATIONS as SCAN_IMPLEMENTATIONS
from zigma_kernels.selective_scan import cases as scan_cases
from zigma_kernels.trust import fingerprint

OPS = {"selective_scan": (SCAN_IMPLEMENTATIONS, scan_cases), "causal_conv": (CONV_IMPLEMENTATIONS, conv_cases)}
MARK = "RESULT "  # before a line of JSON that one process prints for another
OFFICIAL = "official"  # the authors' CUDA kernel, through PyTorch
_SIZES = ("1024 tokens", "4096 tokens", "16384 tokens", "one large image")
WANTED = [name + order for name in _SIZES for order in ("", ", zigzag")]  # times that are asked for first
STEPS = "--size=b --operations=step --tokens_per_batch=32768 --dtype=bfloat16"  # as on one large GPU
GRADIENTS = "--size=s --operations=gradient"


@dataclass(frozen=True)
class Machine:
    """What decides what can be run: JAX's platform, the GPU's compute capability, and what is installed beside JAX."""

    platform: str
    capability: tuple[int, int] | None = None
    sanitizer: bool = False
    models: bool = False
    official: bool = False


@dataclass(frozen=True)
class Task:
    """One thing to do.

    Attributes:
        kind: "agreement" with float64; "time"; "sanitizer", a tool of CUDA's watching; "model", whole training steps.
        op, implementation: what is looked at; of a model neither.
        what: the case's name, the sanitizer's tool, or the flags of `zigma_jax.bench`.
        seconds: how long it takes, roughly. Nobody has measured these.
        limit: seconds after which it is given up.
    """

    kind: str
    op: str
    implementation: str
    what: str
    seconds: int
    limit: int

    @property
    def key(self) -> str:
        return " | ".join((self.kind, self.op, self.implementation, self.what))

    @property
    def title(self) -> str:
        """What it has in common with the tasks that one process does, one after the other."""
        return f"{self.kind}: {self.op} by {self.implementation}" if self.op else f"{self.kind}: {self.what}"


def sources(task: Task) -> str:
    """A fingerprint of what a task's result depends on."""
    if task.op:
        return fingerprint(task.op, task.implementation)
    return "-".join(fingerprint(op, "") for op in OPS)


def models_folder(workdir: Path) -> Path:
    """Where `zigma_jax.bench` keeps its results, one for each form of the ops."""
    return workdir / f"models-{sources(_model(0, ''))}"


def implementations(op: str, machine: Machine) -> list[str]:
    """Those that run on a machine, in the order of preference."""

    def runs(implementation: Any) -> bool:
        if isinstance(implementation, NvidiaKernel):
            return machine.capability is not None and machine.capability >= implementation.capability
        return machine.platform == "cpu" or not isinstance(implementation, CpuKernel)

    return [name for name, implementation in OPS[op][0].items() if runs(implementation)]


def cases_of(op: str) -> dict[str, Any]:
    """All cases by name, those of the check at a kernel's first use before the others."""
    cases = OPS[op][1]
    return {case.name: case for case in (*cases.FIRST_USE, *cases.CASES.values())}


def plan(machine: Machine) -> list[Task]:
    """Everything, in the order in which it is done: each task once."""
    return list(dict.fromkeys(_wanted(machine)))


def _wanted(machine: Machine) -> Iterator[Task]:
    leading = {op: _leading(op, machine) for op in OPS}
    cpu = machine.platform == "cpu"
    for op, name in leading.items():
        yield from _agreement(op, name)
    for op, name in leading.items():
        yield from _times(op, name, machine, WANTED)
    if machine.models and not cpu:
        for tokens in (1024, 4096, 16384):
            yield _model(2, f"--tokens={tokens} --models=zigma,sit {STEPS}")
    for op in OPS:
        yield from _times(op, "xla", machine, WANTED)
    others = [(op, name) for op in OPS for name in implementations(op, machine)]
    for op, name in others:
        yield from _agreement(op, name)
    kernels = [(op, name) for op, name in others if isinstance(OPS[op][0][name], NvidiaKernel)]
    if machine.sanitizer:
        for tool, (op, name) in itertools.product(("memcheck", "racecheck"), kernels):
            yield Task("sanitizer", op, name, tool, 90, 300)
    if machine.official:
        for case in WANTED:
            if scan_cases.CASES[case].order is None:
                yield Task("time", "selective_scan", OFFICIAL, case, 15, 180)
    if machine.models and not cpu:
        for tokens in (1024, 4096, 16384):
            yield _model(1, f"--tokens={tokens} --models=zigma/sweep1 {STEPS}")
            yield _model(6, f"--tokens={tokens} --models=zigma,sit --remat=none,mixer,block {STEPS}")
    for op, name in others:
        if name != "reference":
            yield from _times(op, name, machine, [case.name for case in OPS[op][1].CASES.values() if case.bench])
    if machine.models and cpu:
        for tokens in (256, 1024):
            yield _model(2, f"--tokens={tokens} --models=zigma,sit {GRADIENTS}")


def _leading(op: str, machine: Machine) -> str:
    """The kernel that a machine would take; XLA's operations where there is none."""
    kernels = NvidiaKernel, CpuKernel
    names = implementations(op, machine)
    return next((name for name in names if isinstance(OPS[op][0][name], kernels)), "xla")


def _agreement(op: str, name: str) -> Iterator[Task]:
    for case in cases_of(op).values():
        if not case.bench:
            yield Task("agreement", op, name, case.name, 4, 120)


def _times(op: str, name: str, machine: Machine, names: list[str]) -> Iterator[Task]:
    cpu = machine.platform == "cpu"
    for case in names:
        found = OPS[op][1].CASES.get(case)
        if found is not None and not (cpu and found.elements > LARGEST_ON_CPU):
            yield Task("time", op, name, case, 10, 300 if cpu else 180)


def _model(cases: int, flags: str) -> Task:
    return Task("model", "", "", flags, 80 * cases, 300 * cases)

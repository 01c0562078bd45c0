"""Programs as `python -m` runs them, in processes of their own that don't import everything again.

Each is forked from a process that has imported the libraries and started nothing: importing takes longer than most of
what the tests have programs do.
"""

import atexit
import multiprocessing
import os
import re
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["zigma_jax.programs", "zigma_jax.training.evaluation", "zigma_jax.training.logging"])


def start(output: Path, program: str | Path, *arguments: str, devices: int = 1):
    """A process that runs a module, or a file *.py, on `devices` devices of the CPU and prints into `output`.

    It leads a process group of its own, as a shell's jobs do.
    """
    flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
    process = _CONTEXT.Process(target=_main, args=(output, str(program), arguments, flags))
    process.start()
    atexit.register(process.kill)  # before multiprocessing waits for it
    return process


def run(program: str | Path, *arguments: str, devices: int = 1) -> tuple[int | None, str]:
    """The program's exit code, and what it printed to stdout and stderr."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "output"
        process = start(output, program, *arguments, devices=devices)
        process.join(timeout=300)
        process.kill()  # one that hangs
        process.join()
        return process.exitcode, output.read_text()


def _main(output: Path, program: str, arguments: tuple[str, ...], xla_flags: str) -> None:
    os.setpgid(0, 0)
    os.environ["XLA_FLAGS"] = xla_flags
    file = output.open("w", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def wait_until(condition: Callable[[], object], process=None, output: Path | None = None, seconds: float = 280) -> None:
    """Returns once `condition()` is true; fails when it has not become so, or `process` has ended before."""
    end = time.monotonic() + seconds
    while not condition():
        printed = output.read_text() if output is not None and output.exists() else ""
        assert process is None or process.is_alive(), printed
        assert time.monotonic() < end, f"{seconds} s were not enough\n{printed}"
        time.sleep(0.01)

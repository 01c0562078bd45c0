"""Programs as several processes of one run, on this machine, each an interpreter of its own."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start_all(
    directory: Path, program: str, *arguments: str, count: int = 2, devices: int = 2, each: Sequence[Sequence[str]] = ()
) -> tuple[list[subprocess.Popen], list[Path]]:
    """The processes, each with a hash seed of its own, and the files that they print into.

    program: a module, or a file *.py. each: further arguments of process p.
    """
    directory.mkdir(parents=True, exist_ok=True)
    flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
    command = [sys.executable, *([program] if program.endswith(".py") else ["-m", program]), *arguments]
    port, started, outputs = free_port(), [], []
    for index in range(count):
        own = [f"--coordinator=localhost:{port}", f"--processes={count}", f"--process_id={index}"]
        outputs.append(directory / f"printed{index}")
        environment = os.environ | {"XLA_FLAGS": flags, "PYTHONHASHSEED": str(index + 1)}
        with outputs[-1].open("w") as file:
            process = subprocess.Popen(
                [*command, *own, *(each[index] if each else ())], env=environment, stdout=file, stderr=file
            )
        started.append(process)
    return started, outputs


def ended(started: Sequence[subprocess.Popen], seconds: float) -> list[int | None]:
    """Their exit codes; those that have not ended by then are killed, and have none."""
    codes = []
    for process in started:
        try:
            codes.append(process.wait(seconds))
        except subprocess.TimeoutExpired:
            codes.append(None)
    for process in started:
        process.kill()
        process.wait()
    return codes


def run_all(
    directory: Path, program: str, *arguments: str, seconds: float = 280, **options
) -> tuple[list[int | None], list[str]]:
    """The exit codes of the processes, and what each of them printed."""
    started, outputs = start_all(directory, program, *arguments, **options)
    codes = ended(started, seconds)
    return codes, [output.read_text() for output in outputs]

"""Tasks in processes of their own: one that crashes, or never ends, takes nothing with it."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zigma_kernels.verify.tasks import MARK, OPS, Task, models_folder

START = 60  # seconds that a process may take beside its first task
_WORK = [sys.executable, "-m", "zigma_kernels.verify.work"]

type Result = dict[str, Any]


def look() -> Result:
    """What JAX sees here. Asked in another process, as this one must not hold the device."""
    done = subprocess.run([*_WORK, "about"], capture_output=True, text=True)
    found = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not found:
        raise RuntimeError(f"JAX finds no device: {_last_line(done.stderr)}")
    return json.loads(found[0])


def run(tasks: Sequence[Task], workdir: Path, seconds_left: Callable[[], float]) -> Iterator[tuple[Task, Result]]:
    """Runs tasks of one title, and yields each with its result as soon as it is there.

    A result has "error" if the task failed, crashed or took too long, and "skipped" if it cannot run here. After an
    error, and when the time is over, there may be tasks without result.
    """
    kind, op, implementation = tasks[0].kind, tasks[0].op, tasks[0].implementation
    if kind == "model":
        yield from _models(tasks[0], workdir, seconds_left)
    elif kind == "sanitizer":
        yield from _sanitized(tasks[0], workdir, seconds_left)
    else:
        command = [*_WORK, kind, op, implementation, *(task.what for task in tasks)]
        yield from _one_by_one(command, tasks, workdir, seconds_left)


def _one_by_one(command, tasks, workdir, seconds_left):
    with _started(command, workdir) as (process, lines):
        start = START
        for task in tasks:
            limit = task.limit + start
            try:
                line = lines.get(timeout=max(0.0, min(limit, seconds_left())))
                while line is not None and not line.startswith(MARK):
                    line = lines.get(timeout=max(0.0, min(limit, seconds_left())))
            except queue.Empty:
                if seconds_left() > 0:
                    yield task, {"error": f"not done after {limit} s"}
                return
            if line is None:
                yield task, {"error": _ended(process, workdir)}
                return
            result = json.loads(line.removeprefix(MARK))
            yield task, result
            if "error" in result:
                return
            start = 0


def _sanitized(task, workdir, seconds_left):
    cases = [case.name for case in OPS[task.op][1].FIRST_USE]
    tool = ["compute-sanitizer", "--tool", task.what, "--error-exitcode", "86"]
    result = _whole([*tool, *_WORK, "agreement", task.op, task.implementation, *cases], task, workdir, seconds_left)
    if result is not None:
        status, text = result
        summaries = re.findall(r"[A-Z ]*SUMMARY: .*", text)
        if status is None:
            yield task, {"error": f"not done after {task.limit} s"}
        elif not summaries:
            yield task, {"error": f"exit code {status}: {_last_line(text)}"}
        else:
            yield task, {"right": status == 0, "summary": summaries[-1].strip()}


def _models(task, workdir, seconds_left):
    minutes = min(seconds_left(), task.limit) / 60
    flags = [*task.what.split(), f"--workdir={models_folder(workdir)}", f"--minutes={minutes:.2f}"]
    result = _whole([sys.executable, "-m", "zigma_jax.bench", *flags], task, workdir, seconds_left)
    if result is not None:
        status, text = result
        if status is None:
            yield task, {"error": f"not done after {task.limit} s"}
        elif status:
            yield task, {"error": f"exit code {status}: {_last_line(text)}"}
        elif "are over" not in text:  # it says so when --minutes have left cases out
            yield task, {}


def _whole(command, task, workdir, seconds_left):
    """(exit status, all that was printed) of a command, (None, "") if it took too long; None if the time is over."""
    with _started(command, workdir, errors=subprocess.STDOUT) as (process, lines):
        text = []
        while True:
            try:
                line = lines.get(timeout=max(0.0, min(task.limit + START, seconds_left() + START)))
            except queue.Empty:
                return (None, "") if seconds_left() > 0 else None
            if line is None:
                with open(workdir / "log.txt", "a", encoding="utf-8") as log:
                    log.writelines(text)
                return process.wait(), "".join(text)
            text.append(line)


@contextlib.contextmanager
def _started(command, workdir, errors=None):
    """A process, and a queue of the lines that it prints, None at their end. It ends with the block."""
    # Beside PyTorch, or a sanitizer, there is to be room on the device.
    variables = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with open(workdir / "log.txt", "a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors or log,
            text=True,
            env=variables,
            start_new_session=True,  # so that what it starts can be ended with it
        )
    lines = queue.Queue()

    def read():
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield process, lines
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def _ended(process, workdir) -> str:
    """How a process came to its end that should have gone on."""
    status = process.wait()
    if status < 0:
        return f"killed by signal {-status} ({signal.Signals(-status).name})"
    return f"exit code {status}: {_last_line((workdir / 'log.txt').read_text(encoding='utf-8'))}"


def _last_line(text: str) -> str:
    return ([line for line in text.splitlines() if line.strip()] or ["it printed nothing"])[-1].strip()[:300]

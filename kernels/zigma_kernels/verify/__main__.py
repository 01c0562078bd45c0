"""Shows on the device at hand that the kernels are right, how fast they are, and what whole models make of it.

    python -m zigma_kernels.verify [--minutes=20] [--workdir=runs/verify]
    python -m zigma_kernels.verify --list    # what it would do, here and on a GPU, and roughly how long that takes

In this order, the kernels that are chosen by default before all others:

- agreement: values and all gradients of every tested case against float64, and two runs against each other, bit by bit
- time: the cases of `zigma_kernels.bench`
- whole training steps by `zigma_jax.bench`, if zigma_jax is installed
- the authors' own CUDA kernel, if torch and mamba_ssm are installed
- compute-sanitizer's memcheck and racecheck, where it is installed

Everything runs in processes of its own, each with a limit of time, so that a kernel that hangs or crashes takes nothing
with it. The workdir gets `results.json`, written after every task, `log.txt`, and at the end `tables.md`, a section for
docs/benchmarks.md. The same command goes on with what is missing. What failed is tried again after that, and what
depends on a source that has changed is done anew.
"""

import argparse
import datetime
import importlib.util
import itertools
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zigma_kernels.storage import write_atomically
from zigma_kernels.verify import report
from zigma_kernels.verify.run import look, run
from zigma_kernels.verify.tasks import Machine, Task, plan, sources

GPU = Machine("gpu", (9, 0), sanitizer=True, models=True, official=True)  # that a list without one is for


def machine(about: dict[str, Any]) -> Machine:
    """What `plan` has to know of a machine."""
    capability = about["capability"] and tuple(about["capability"])
    return Machine(
        about["platform"],
        capability,
        sanitizer=capability is not None and shutil.which("compute-sanitizer") is not None,
        models=importlib.util.find_spec("zigma_jax") is not None,
        official=capability is not None and all(map(importlib.util.find_spec, ("torch", "mamba_ssm"))),
    )


def missing(tasks: Sequence[Task], records: dict[str, Any]) -> list[Task]:
    """What is left to do: what was never done, or with other sources, and at last what failed."""

    def current(task):
        return records.get(task.key, {}).get("sources") == sources(task)

    failed = [task for task in tasks if current(task) and "error" in records[task.key]]
    return [task for task in tasks if not current(task)] + failed


def listing(tasks: Sequence[Task]) -> str:
    """What a plan does, a line for each process, with the minutes from the start."""
    lines, passed = [], 0
    for title, group in itertools.groupby(tasks, lambda task: task.title):
        group = list(group)
        passed += sum(task.seconds for task in group)
        detail = f" ({'; '.join(task.what for task in group)})" if group[0].op else ""
        lines.append(f"  {passed / 60:5.0f} min  {title}{detail}")
    return "\n".join(lines)


def read(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What a workdir holds already. Exits if that is of another machine."""
    if not path.exists():
        return {"about": about, "tasks": {}}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        here, there = ((x["device"], x["versions"]) for x in (about, found["about"]))
        found["tasks"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        sys.exit(f"{path}: it is not a file of this program; move it away, or choose another --workdir")
    if here != there:
        sys.exit(f"{path}: it is of {there}, and this is {here}; choose another --workdir")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="no task runs beyond")
    parser.add_argument("--workdir", type=Path, default=Path("runs/verify"), help="for results")
    parser.add_argument("--list", action="store_true", help="say what would be done, and do nothing")
    flags = parser.parse_args()
    deadline = time.monotonic() + 60 * flags.minutes

    about = look()
    tasks = plan(machine(about))
    path = flags.workdir / "results.json"
    found = read(path, about)
    todo = missing(tasks, found["tasks"])
    print(f"{about['device']}: {len(todo)} of {len(tasks)} tasks to do", flush=True)
    if flags.list:
        print(f"Minutes are rough guesses, not measured ones.\n{listing(todo)}")
        if about["platform"] == "cpu":
            tasks = plan(GPU)
            print(f"\nOn an NVIDIA GPU of compute capability 9.0, all that is optional installed: {len(tasks)} tasks")
            print(listing(tasks))
        return

    flags.workdir.mkdir(parents=True, exist_ok=True)

    def left():
        return deadline - time.monotonic()

    def record(task, result, seconds):
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        found["tasks"][task.key] = result | {"sources": sources(task), "seconds": round(seconds, 1), "measured": now}
        write_atomically(path, json.dumps(found, indent=1) + "\n")
        print(f"{task.key}: {report.in_short(result)}", flush=True)

    while todo and todo[0].seconds < left():
        group = list(itertools.takewhile(lambda task: task.title == todo[0].title, todo))
        begun = time.monotonic()
        for task, result in run(group, flags.workdir, left):
            record(task, result, time.monotonic() - begun)
            begun = time.monotonic()
            todo.remove(task)
        if group[0] in todo:  # nothing came of it: the time is over
            break
    if todo:
        print(f"--minutes={flags.minutes:g} are over; the same command goes on with the {len(todo)} that are missing")
    tables = report.tables(tasks, found, flags.workdir)
    write_atomically(flags.workdir / "tables.md", tables)
    print(f"\n{tables}")
    sys.exit(any(report.is_wrong(result) for result in found["tasks"].values()))


if __name__ == "__main__":
    main()

"""The program that verifies kernels: what it plans, and that nothing stops it or is done twice."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from zigma_kernels.verify import __main__ as verify
from zigma_kernels.verify import report, run, work
from zigma_kernels.verify.tasks import MARK, OPS, Machine, Task, models_folder, plan

ABOUT = {"device": "one", "versions": {"jax": "0"}, "platform": "cpu", "capability": None, "kind": "cpu"}
HOPPER = Machine("gpu", (9, 0), sanitizer=True, models=True, official=True)

# Stands for `work`: what a case does is its name.
CHILD = f"""
import os, sys, time
kind, op, implementation, *names = sys.argv[1:]
for name in names:
    if name == "crash": os.kill(os.getpid(), 11)
    if name == "hang": time.sleep(600)
    if name == "exit": sys.exit("no memory")
    print("chatter")
    with open(os.environ["DONE"], "a") as file: file.write(name + "\\\\n")
    print({MARK!r} + '{{"error": "bad"}}' if name == "bad" else {MARK!r} + '{{"right": true}}', flush=True)
    if name == "bad": break
"""


def tasks(*names, limit=30):
    return [Task("agreement", "selective_scan", "xla", name, 0, limit) for name in names]


@pytest.fixture
def child(monkeypatch, tmp_path):
    monkeypatch.setenv("DONE", str(tmp_path / "done.txt"))
    monkeypatch.setattr(run, "_WORK", [sys.executable, "-c", CHILD.replace("\\\\", "\\")])
    monkeypatch.setattr(run, "START", 0)
    monkeypatch.setattr(verify, "look", lambda: ABOUT)
    return tmp_path


def start(monkeypatch, workdir, planned, *flags) -> Any:
    """Exit status of the program."""
    monkeypatch.setattr(verify, "plan", lambda machine: planned)
    monkeypatch.setattr("sys.argv", ["verify", f"--workdir={workdir}", *flags])
    with pytest.raises(SystemExit) as exit_:
        verify.main()
    return exit_.value.code


def results(workdir):
    found = json.loads((workdir / "results.json").read_text())["tasks"]
    return {key.split(" | ")[-1]: value for key, value in found.items()}


def test_what_hangs_or_crashes_takes_nothing_with_it(child, monkeypatch):
    planned = tasks("a", "crash", "b", "exit", "bad", "c") + tasks("hang", limit=1) + tasks("d")
    assert start(monkeypatch, child, planned) == 1
    found = results(child)
    assert list(found) == ["a", "crash", "b", "exit", "bad", "c", "hang", "d"]
    assert [name for name in found if found[name].get("right")] == ["a", "b", "c", "d"]
    assert found["crash"]["error"] == "killed by signal 11 (SIGSEGV)"
    assert found["exit"]["error"] == "exit code 1: no memory"
    assert found["hang"]["error"] == "not done after 1 s"
    tables = (child / "tables.md").read_text()
    assert "agreement | selective_scan | xla | crash: error: killed by signal 11" in tables
    assert "8 of 8 tasks are done" in tables


def test_the_same_command_goes_on(child, monkeypatch, capsys):
    planned = tasks("a", "b", "bad", "c")
    assert start(monkeypatch, child, planned[:1]) == 0
    start(monkeypatch, child, planned)
    start(monkeypatch, child, planned)
    assert (child / "done.txt").read_text().split() == ["a", "b", "bad", "c", "bad"]  # what failed, once more
    monkeypatch.setattr(verify, "sources", lambda task: "others")
    start(monkeypatch, child, planned[:2])
    assert (child / "done.txt").read_text().split()[-2:] == ["a", "b"]
    assert start(monkeypatch, child, planned, "--minutes=0") == 1
    assert "--minutes=0 are over" in capsys.readouterr().out
    monkeypatch.setattr(verify, "look", lambda: ABOUT | {"device": "two"})
    assert "choose another --workdir" in start(monkeypatch, child, planned)
    (child / "results.json").write_text("[]")
    assert "not a file of this program" in start(monkeypatch, child, planned)


def test_the_time_is_over_in_the_middle_of_a_task(child):
    seen = []
    for task, _ in run.run(tasks("a", "hang", "b"), child, lambda: 0 if seen else 60):
        seen.append(task.what)
    assert seen == ["a"]  # the others are as if they had not begun


@pytest.mark.parametrize(
    ("status", "prints", "expected"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", {"right": True, "summary": "ERROR SUMMARY: 0 errors"}),
        (86, "========= ERROR SUMMARY: 2 errors", {"right": False, "summary": "ERROR SUMMARY: 2 errors"}),
        (1, "no driver", {"error": "exit code 1: no driver"}),
    ],
)
def test_a_sanitizer(child, monkeypatch, status, prints, expected):
    tool = child / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\necho "$@" > {child}/asked\necho "{prints}"\nexit {status}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(child), prepend=os.pathsep)
    task = Task("sanitizer", "causal_conv", "mosaic_gpu", "racecheck", 0, 30)
    assert list(run.run([task], child, lambda: 60)) == [(task, expected)]
    asked = (child / "asked").read_text()
    assert asked.startswith("--tool racecheck --error-exitcode 86 ")
    assert asked.endswith("agreement causal_conv mosaic_gpu bfloat16 frames of a video several tiles\n")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("echo done", [{}]),
        ("echo '--minutes=1 are over; the same command'", []),
        ("echo 'no such model'; exit 2", [{"error": "exit code 2: no such model"}]),
        ("sleep 600", [{"error": "not done after 1 s"}]),
    ],
)
def test_whole_models(child, monkeypatch, command, expected):
    program = child / "python"
    program.write_text(f'#!/bin/sh\necho "$@" > {child}/asked\n{command}\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    task = Task("model", "", "", "--tokens=1024 --size=b", 0, 1)
    assert list(run.run([task], child, lambda: 60)) == [(task, result) for result in expected]
    asked = (child / "asked").read_text().split()
    folder = models_folder(child)
    assert asked == ["-m", "zigma_jax.bench", "--tokens=1024", "--size=b", f"--workdir={folder}", "--minutes=0.02"]


def test_the_most_wanted_first():
    planned = plan(HOPPER)
    assert len({task.key for task in planned}) == len(planned)
    titles = list(dict.fromkeys(task.title for task in planned))
    assert titles[:4] == [
        f"{kind}: {op} by mosaic_gpu" for kind in ("agreement", "time") for op in ("selective_scan", "causal_conv")
    ]
    times = [task.what for task in planned if task.title == "time: selective_scan by mosaic_gpu"]
    assert times[:2] == ["1024 tokens", "1024 tokens, zigzag"]
    first = [task for task in planned if task.seconds][: len(planned) // 2]
    assert any(task.kind == "model" and "--tokens=16384" in task.what for task in first)
    wanted = next(i for i, task in enumerate(planned) if task.title == "agreement: selective_scan by xla")
    assert sum(task.seconds for task in planned[:wanted]) < 20 * 60
    assert {task.what for task in planned if task.kind == "sanitizer"} == {"memcheck", "racecheck"}


@pytest.mark.parametrize(
    ("machine", "leading"),
    [
        (Machine("gpu", (8, 0)), {"selective_scan": "triton", "causal_conv": "mosaic_gpu"}),
        (Machine("cpu"), {"selective_scan": "cpu", "causal_conv": "cpu"}),
        (Machine("tpu"), {"selective_scan": "xla", "causal_conv": "xla"}),
    ],
)
def test_other_machines(machine, leading):
    planned = plan(machine)
    assert {op: next(task.implementation for task in planned if task.op == op) for op in OPS} == leading
    assert {task.kind for task in planned} == {"agreement", "time"}
    assert ("cpu" in {task.implementation for task in planned}) == (machine.platform == "cpu")


def test_a_list_runs_nothing(child, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["verify", "--list", f"--workdir={child / 'new'}"])
    verify.main()
    out = capsys.readouterr().out
    assert "agreement: selective_scan by cpu (bfloat16; " in out
    assert re.search(r"On an NVIDIA GPU of compute capability 9\.0, .*: \d+ tasks\n +1 min  agreement: sel", out)
    assert "rough guesses" in out
    assert not (child / "new").exists()


def test_the_work_itself(capsys):
    work.main(["about"])
    work.main(["agreement", "causal_conv", "xla", "width 4", "bfloat16"])
    work.main(["agreement", "selective_scan", "cpu", "no such case"])
    about, first, second, third = (
        json.loads(line.removeprefix(MARK)) for line in capsys.readouterr().out.splitlines() if line.startswith(MARK)
    )
    assert verify.machine(about) == Machine("cpu", models=True)
    assert first["errors"].keys() == {"y", "dx", "dweight", "dbias", "dinitial_state"}
    assert first["right"]
    assert second["right"]
    assert "KeyError" in third["error"]


def test_a_wrong_kernel_is_told(monkeypatch, tmp_path):
    result = {"right": False, "same_bits": True, "tolerance": 1e-5, "dtype": "float32", "measured": "2026-11-27"}
    result["errors"] = {"y": 1e-6, "dB": "not finite"}
    (task,) = tasks("plain")
    text = report.tables([task], {"about": ABOUT, "tasks": {task.key: result}}, tmp_path)
    assert "| selective_scan | xla | float32 | 1 | 0 | 1 | not finite | dB, plain |" in text
    assert "WRONG, dB is off by not finite of 1.0e-05 allowed" in text
    assert report.is_wrong(result)


def test_verified_lines():
    about = ABOUT | {"platform": "gpu", "kind": "H100"}
    planned = [task for task in plan(HOPPER) if task.title == "agreement: causal_conv by mosaic_gpu"]
    right = {"right": True, "same_bits": True, "tolerance": 1e-5, "dtype": "float32", "measured": "2026-11-27"}
    right["errors"] = {"y": 0.0}
    found = {"about": about, "tasks": {task.key: right for task in planned}}
    assert "    ('causal_conv', 'mosaic_gpu', '" in report.tables(planned, found, Path(os.devnull))
    del found["tasks"][planned[0].key]
    assert "trust.py" not in report.tables(planned, found, Path(os.devnull))

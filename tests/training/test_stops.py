"""Signals: the first finishes the step and saves, the second stops at once; whoever had them before gets them back."""

import contextlib
import json
import os
import signal
import socket
import textwrap
import threading
import time

import numpy as np
import pytest

from tests import programs
from tests.training.tiny import tiny_config, tiny_flags
from zigma_jax.train import Run, train
from zigma_jax.training.array_store import read_array
from zigma_jax.training.stops import SIGNALS, Stops


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def leaves(workdir, step):
    path = workdir / "checkpoints" / str(step)
    names = json.loads((path / "leaves.json").read_text())["leaves"]
    return {name: read_array(path / "state", name) for name in names}


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


def children(pid):
    """The processes that a process has started, and theirs."""
    mine = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == pid:
            mine += [int(entry), *children(int(entry))]
    return mine


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_signal_at_step_3_saves_step_3_and_the_run_goes_on_to_the_bit(tmp_path, data_dir, monkeypatch):
    config = tiny_config(data_dir, checkpoint__every=100, log__preview_every=3, log__preview_count=1)
    assert train(config, tmp_path / "whole")
    next_batch, before = Run._next_batch, handlers()

    def signalled(run):
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return next_batch(run)

    monkeypatch.setattr(Run, "_next_batch", signalled)
    assert not train(config, tmp_path / "parts")
    assert handlers() == before
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["3"]
    assert [line["step"] for line in metrics(tmp_path / "parts")] == [1, 2, 3]
    monkeypatch.undo()
    assert train(config, tmp_path / "parts")
    expected, found = leaves(tmp_path / "whole", 6), leaves(tmp_path / "parts", 6)
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    runs = [[(line["step"], line["loss"], line["batch_crc32"]) for line in metrics(tmp_path / run)]
            for run in ("whole", "parts")]  # fmt: skip
    assert runs[0] == runs[1]
    assert not list((tmp_path / "parts").rglob(".*"))  # neither lock nor leftovers

    # Fewer steps than there are: nothing to do, and no error.
    assert train(tiny_config(data_dir, train__steps=4), tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir() if int(path.name) > 3] == ["6"]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_does_what_it_did_before(number):
    received = []
    before = signal.signal(number, lambda *_: received.append(number))
    try:
        with Stops() as stops:
            assert not stops.agreed()
            os.kill(os.getpid(), number)
            assert stops.agreed()
            assert stops.received == number
            assert not received
            os.kill(os.getpid(), number)
            assert received == [number]
        os.kill(os.getpid(), number)
        assert received == [number] * 2
    finally:
        signal.signal(number, before)


def test_handlers_come_back_after_an_error_and_other_threads_have_none_to_set():
    before, wakeup = handlers(), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with contextlib.suppress(KeyError), Stops(exit_at_second=True):
        assert handlers() != before
        raise KeyError
    assert handlers() == before
    assert signal.set_wakeup_fd(wakeup) == wakeup

    def in_a_thread():
        with Stops() as stops:
            answers.append((stops.agreed(), handlers() == before))

    answers = []
    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert answers == [(False, True)]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_program_ends_at_the_second_signal_even_while_it_compiles(tmp_path, number):
    """The main thread is in a library and looks at no signal, as while XLA compiles."""
    program = """
        import hashlib
        from zigma_jax.training.stops import Stops
        with Stops(exit_at_second=True):
            print("in", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
    """
    script, output = tmp_path / "busy.py", tmp_path / "output"
    script.write_text(textwrap.dedent(program))
    process = programs.start(output, script)
    programs.wait_until(lambda: output.exists() and "in\n" in output.read_text(), process, output)
    assert process.pid is not None
    os.kill(process.pid, number)
    programs.wait_until(lambda: "a second signal stops at once" in output.read_text(), process, output)
    time.sleep(0.3)
    os.kill(process.pid, number)
    process.join(timeout=10)
    assert process.exitcode == 128 + number


@pytest.mark.slow
def test_a_second_sigterm_while_saving_leaves_the_checkpoint_before(tmp_path, data_dir):
    """Saving takes for ever; the workdir is free and sound afterwards."""
    program = """
        import sys, time
        from absl import app
        from zigma_jax import programs, train
        save = train.Run._save
        def slow(run):
            save(run)
            if run.stops.received:
                print("saving", flush=True)
                time.sleep(1000)
        train.Run._save = slow
        app.run(train.main, flags_parser=programs.parse_flags)
    """
    script, output, workdir = tmp_path / "slow.py", tmp_path / "output", tmp_path / "run"
    script.write_text(textwrap.dedent(program))
    flags = tiny_flags(data_dir, train__steps=10_000, checkpoint__every=2)
    process = programs.start(output, script, *flags, f"--workdir={workdir}")
    programs.wait_until((workdir / "checkpoints" / "2").exists, process, output)
    process.terminate()
    programs.wait_until(lambda: "saving" in output.read_text().splitlines(), process, output)
    time.sleep(0.3)
    process.terminate()
    process.join(timeout=10)
    assert process.exitcode == 143, output.read_text()
    assert "SIGTERM again: stopped at once" in output.read_text()
    latest = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert train(tiny_config(data_dir, train__steps=latest + 1), workdir)


@pytest.mark.slow  # 21 s
def test_workers_leave_signals_to_their_run_and_end_with_it(tmp_path, data_dir):
    """SIGTERM to the whole group while the workers start loses nothing; kill -9 of the run leaves none of them."""
    output, workdir = tmp_path / "output", tmp_path / "run"
    flags = tiny_flags(data_dir, train__steps=10_000, checkpoint__every=1_000, data__workers=1)
    process = programs.start(output, "zigma_jax.train", *flags, f"--workdir={workdir}")
    programs.wait_until(lambda: children(process.pid), process, output)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGTERM)
    process.join(timeout=280)
    assert process.exitcode == 143, output.read_text()
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert metrics(workdir)[-1]["step"] == steps[0]

    process = programs.start(output, "zigma_jax.train", *flags, f"--workdir={workdir}")
    programs.wait_until(lambda: metrics(workdir)[-1]["step"] > steps[0], process, output)
    workers = children(process.pid)
    assert workers
    process.kill()
    process.join()
    programs.wait_until(lambda: not any(map(is_running, workers)), seconds=20)


@pytest.mark.slow
def test_two_processes_stop_together_when_one_gets_the_signal(tmp_path, data_dir):
    program = """
        import sys
        from pathlib import Path
        import jax
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
        from tests.training.tiny import tiny_config
        from zigma_jax.train import train
        from zigma_jax.training.stops import Stops
        config = tiny_config(sys.argv[4], train__steps=10_000, checkpoint__every=1_000)
        with_signal = Stops(exit_at_second=True)
        assert not train(config, Path(sys.argv[3]), with_signal)
        sys.exit(128 + with_signal.received)
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script, outputs, workdir = tmp_path / "two.py", (tmp_path / "0", tmp_path / "1"), tmp_path / "run"
    script.write_text(textwrap.dedent(program))
    processes = [
        programs.start(output, script, address, str(rank), str(workdir), str(data_dir))
        for rank, output in enumerate(outputs)
    ]
    programs.wait_until(lambda: (workdir / "metrics.jsonl").exists() and metrics(workdir), processes[0], outputs[0])
    processes[1].terminate()
    for process in processes:
        process.join(timeout=280)
        process.kill()
    printed = "\n".join(output.read_text() for output in outputs)
    assert [process.exitcode for process in processes] == [143, 143], printed
    (checkpoint,) = (workdir / "checkpoints").iterdir()
    assert metrics(workdir)[-1]["step"] == int(checkpoint.name)

"""One owner a workdir, and what binds it to its model."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.tiny import tiny_config
from zigma_jax.errors import ConfigError
from zigma_jax.train import Run, train
from zigma_jax.training import workdir as workdir_module
from zigma_jax.training.sample_directory import check_directory
from zigma_jax.training.workdir import LOCK, check_same_run, owned, write_config

HOLDER = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, b'{"host": "elsewhere", "process": 7, "since": "noon"}')
print("held", flush=True)
time.sleep(1000)
"""


def hold(path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "held\n"
    return process


def test_the_second_run_is_refused_at_once_and_a_killed_one_keeps_nobody_out(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr("zigma_jax.train.make_dataset", lambda *_, **__: pytest.fail("it went on"))
    (tmp_path / "metrics.jsonl").write_text('{"step": 9}\n')
    holder = hold(tmp_path / LOCK)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"in use by process 7 on elsewhere, since noon.*another directory"):
        train(tiny_config(data_dir), tmp_path)
    assert time.monotonic() - began < 2
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 9}\n'
    holder.kill()
    holder.wait()
    with owned(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on"), owned(tmp_path):
            pass  # also in one process
    assert not (tmp_path / LOCK).exists()


def test_what_killed_runs_left_half_written_is_removed(tmp_path):
    (tmp_path / "previews").mkdir()
    leftovers = [tmp_path / ".config.json.0a1b2c3d.partial", tmp_path / "previews" / ".latest.png.00000000.partial"]
    for path in leftovers:
        path.write_bytes(b"half")
    with owned(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "previews"]
        assert not list((tmp_path / "previews").iterdir())


def test_without_locks_a_sign_of_life_stands_for_one(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setattr(workdir_module, "_BEAT", 0.1)
    with owned(tmp_path):
        assert "has no locks" in caplog.text
        with pytest.raises(ConfigError, match="in use by process"), owned(tmp_path):
            pass
    (tmp_path / LOCK).write_text('{"host": "elsewhere", "process": 7, "since": "noon"}')  # and it was killed
    with owned(tmp_path):
        pass


def test_an_address_never_becomes_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (owned(Path("gs://bucket/run")).__enter__, lambda: check_directory(Path("gs://bucket/run"))):
        with pytest.raises(ConfigError, match=r"gs:/bucket/run: a pathlib.Path holds no address"):
            use()
    assert not list(tmp_path.iterdir())


def test_a_first_start_that_failed_binds_to_nothing(tmp_path, data_dir, monkeypatch):
    """Out of memory in the first step, say; then with a smaller model, in the same workdir."""

    def fails(run):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(Run, "_next_batch", fails)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        train(tiny_config(data_dir, model__hidden_size=32), tmp_path)
    with pytest.raises(ValueError, match="no_such_set"):
        train(tiny_config(data_dir, data__name="no_such_set"), tmp_path)
    monkeypatch.undo()
    assert train(tiny_config(data_dir, train__steps=1), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["hidden_size"] == 16


def test_a_checkpoint_binds_its_model_and_nothing_else(tmp_path, data_dir):
    config = tiny_config(data_dir)
    saved = json.loads(json.dumps(workdir_module.to_dict(config)))
    assert check_same_run(config, saved, tmp_path) == []
    del saved["model"]["mlp_ratio" if "mlp_ratio" in saved["model"] else "remat"]  # of a version without it
    assert check_same_run(config, saved, tmp_path) == []
    changes = {"train__steps": 9, "model__remat": "block", "optimizer__learning_rate": 1e-4}
    lines = check_same_run(tiny_config(data_dir, **changes), saved, tmp_path)
    assert [line.split(":")[0].strip() for line in lines] == ["model.remat", "optimizer.learning_rate", "train.steps"]
    with pytest.raises(ConfigError, match=r"another model \(interpolant.path differ\)"):
        check_same_run(tiny_config(data_dir, interpolant__path="gvp"), saved, tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\0\0\0"])
def test_a_damaged_config_json_is_named_and_written_anew(tmp_path, data_dir, content, caplog):
    (tmp_path / "config.json").write_text(content)
    write_config(tiny_config(data_dir), tmp_path)
    assert f"{tmp_path}/config.json was empty or damaged" in caplog.text
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 6

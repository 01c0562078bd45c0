"""Saving checkpoints: what stays, what is refused, and what a full disk or a kill leaves."""

import resource
import shutil
import socket
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import programs
from tests.training.states import abstract, files_of, make_state, save_and_wait
from zigma_jax.training.array_store import CheckpointError
from zigma_jax.training.checkpoint import Checkpointer


def test_keep_last_and_keep_every(tmp_path):
    with Checkpointer(tmp_path, keep_last=2, keep_every=30) as ckpt:
        for step in range(10, 80, 10):
            ckpt.save(step, {"w": jnp.ones(3)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["30", "60", "70"]


@pytest.mark.parametrize("options", [{"keep_last": 0}, {"keep_every": 0}])
def test_impossible_retention_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match="=0: must be at least 1"):
        Checkpointer(tmp_path, **options)


def test_the_same_step_is_saved_once_and_no_other_run_overwritten(saved):
    with Checkpointer(saved) as ckpt:
        with pytest.raises(CheckpointError, match=r"cannot save step 30 .* steps \[40\]"):
            ckpt.save(30, make_state(30))
        ckpt.restore(abstract(make_state()))
        assert not ckpt.save(40, make_state(40))
        assert ckpt.save(41, make_state(41))
        assert not ckpt.save(41, make_state(41))
    assert sorted(p.name for p in saved.iterdir()) == ["20", "40", "41"]


def test_what_is_not_finite_is_never_saved(saved):
    with Checkpointer(saved) as ckpt:
        bad = make_state(60)
        bad.params["blocks"]["w"] = bad.params["blocks"]["w"].at[3, 4].set(jnp.nan)
        bad.ema["blocks"]["b"] = bad.ema["blocks"]["b"].at[0].set(-jnp.inf)
        ckpt.save(60, bad)
        with pytest.raises(CheckpointError, match=r"step 60 .* not finite: params/blocks/w, ema/blocks/b"):
            ckpt.wait()
        assert ckpt.restore(abstract(make_state()))[2] == 40
    assert sorted(p.name for p in saved.iterdir()) == ["20", "40"]


def test_leaves_and_extras_that_cannot_be_saved_are_named(tmp_path):
    with Checkpointer(tmp_path) as ckpt:
        with pytest.raises(TypeError, match="leaf opt/lr of the state"):
            ckpt.save(1, {"opt": {"lr": 0.1}})
        with pytest.raises(TypeError, match="leaf key of the state"):
            ckpt.save(1, {"key": jax.random.key(0)})
        with pytest.raises(TypeError, match="extra holds"):
            ckpt.save(1, {"w": jnp.ones(3)}, {"path": Path("x")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_named_and_earlier_checkpoints_stay(saved, asynchronous):
    """A limit on the size of files stands for the disk: writing fails in the same place, with an OSError."""
    large = {"w": jax.random.normal(jax.random.key(0), (300, 1000))}
    before = {path: path.read_bytes() for path in files_of(saved)}
    ckpt = Checkpointer(saved, asynchronous=asynchronous)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=rf"could not save step 60 under {saved}: .*File too large"):
            save_and_wait(ckpt, 60, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in files_of(saved)} == before
    assert ckpt.restore(abstract(make_state()))[2] == 40
    ckpt.save(60, large)  # room has been made
    ckpt.close()
    assert ckpt.steps() == [20, 40, 60]


def test_a_disk_too_small_is_seen_beforehand(saved, monkeypatch):
    with Checkpointer(saved) as ckpt:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(CheckpointError, match=rf"60 under {saved}: .*4,000 bytes are needed, 1,000 are free"):
            ckpt.save(60, {"w": jnp.ones(1000)})
    assert sorted(p.name for p in saved.iterdir()) == ["20", "40"]


def test_an_unwritable_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        Checkpointer(tmp_path / "file" / "run") as ckpt,
        pytest.raises(CheckpointError, match=r"file/run: NotADirectory"),
    ):
        ckpt.save(1, {"w": jnp.ones(3)})


def test_a_run_killed_while_saving_leaves_the_previous_checkpoint(tmp_path):
    """The process is killed once the files of step 2 begin to appear."""
    program = """
        import sys, jax, jax.numpy as jnp
        from zigma_jax.training.checkpoint import Checkpointer
        state = {f"w{i}": jnp.full((1000, 1000), i, jnp.float32) for i in range(20)}
        ckpt = Checkpointer(sys.argv[1])
        ckpt.save(1, state, {"n": 1})
        ckpt.wait()
        ckpt.save(2, state, {"n": 2})
        print("saving", flush=True)
        ckpt.wait()
    """
    script, output, tmp_path = tmp_path / "save.py", tmp_path / "output", tmp_path / "run"
    script.write_text(textwrap.dedent(program))
    process = programs.start(output, script, str(tmp_path))
    while not (output.exists() and output.read_text() == "saving\n"):
        assert process.is_alive(), output.read_text()
        time.sleep(0.001)
    process.kill()
    process.join()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2.saving"]
    target = {f"w{i}": jax.ShapeDtypeStruct((1000, 1000), jnp.float32) for i in range(20)}
    with Checkpointer(tmp_path) as ckpt:
        state, extra, step = ckpt.restore(target)
        assert (step, extra) == (1, {"n": 1})
        np.testing.assert_array_equal(state["w19"], 19)
        ckpt.save(2, state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_two_processes_save_together_and_agree(tmp_path):
    """Each holds half of an array; damage that process 0 finds, and every refusal, reach both."""
    program = """
        import os, sys
        from pathlib import Path
        import jax, jax.numpy as jnp, numpy as np
        jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
        from jax.experimental.multihost_utils import sync_global_devices
        from zigma_jax.training.checkpoint import CheckpointError, Checkpointer

        mesh = jax.sharding.Mesh(np.array(jax.devices()), "fsdp")
        rows = jax.sharding.NamedSharding(mesh, jax.P("fsdp"))
        columns = jax.sharding.NamedSharding(mesh, jax.P(None, "fsdp"))

        def state(step, bad=0.0):
            w = np.arange(64, dtype=np.float32).reshape(8, 8) + step + bad
            return {"w": jax.make_array_from_callback(w.shape, rows, lambda index: w[index])}

        def refused(call, *arguments):
            try:
                call(*arguments)
            except CheckpointError as error:
                return str(error)

        target = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=columns)}
        with Checkpointer(sys.argv[3], keep_last=2) as ckpt:
            for step in (1, 2, 3):
                ckpt.save(step, state(step), {"process": jax.process_index()})
            ckpt.wait()
            sync_global_devices("saved")
            if jax.process_index() == 0:
                (Path(sys.argv[3]) / "3" / "extra.json").write_text("{}")
            sync_global_devices("damaged")
            restored, extra, step = ckpt.restore(target)
            assert (step, extra) == (2, {"process": 0})
            for shard in restored["w"].addressable_shards:
                assert (np.asarray(shard.data) == np.arange(64).reshape(8, 8)[shard.index] + 2).all()
            assert "missing from the checkpoint: v" in refused(ckpt.restore, {"v": target["w"]})
            ckpt.save(3, state(3))
            ckpt.wait()
            assert "steps [2, 3] are there" in refused(ckpt.save, 1, state(1))
            ckpt.save(4, state(4, bad=np.inf))
            assert "not finite: w" in refused(ckpt.wait)
            sync_global_devices("done")
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script, outputs, tmp_path = tmp_path / "save.py", (tmp_path / "0", tmp_path / "1"), tmp_path / "run"
    script.write_text(textwrap.dedent(program))
    processes = [
        programs.start(output, script, address, str(rank), str(tmp_path), devices=2)
        for rank, output in enumerate(outputs)
    ]
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0], "\n".join(o.read_text() for o in outputs)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3", "3.damaged"]
    with Checkpointer(tmp_path) as ckpt:
        state, _, _ = ckpt.restore({"w": jax.ShapeDtypeStruct((8, 8), jnp.float32)})
    np.testing.assert_array_equal(state["w"], np.arange(64).reshape(8, 8) + 3)

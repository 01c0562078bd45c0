"""Checkpoints: what was saved comes back to the bit, or the damage is named; nothing in between."""

import json
import logging
import resource
import shutil
import socket
import subprocess
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests import programs
from zigma_jax.training.array_store import CheckpointError, load_params, save_params
from zigma_jax.training.checkpoint import Checkpointer
from zigma_jax.training.integrity import fingerprint, write_sums


@jax.tree_util.register_dataclass
@dataclass
class State:
    params: dict
    ema: dict
    moments: tuple
    step: jax.Array


def make_state(step=0, size=8):
    """Different at each step, in every leaf."""
    w = jnp.arange(16.0 * size).reshape(16, size) * 0.1 + step
    return State(
        params={"blocks": {"w": w, "b": jnp.full((8,), step, jnp.bfloat16)}},
        ema={"blocks": {"w": w / 3, "b": jnp.full((8,), step / 7, jnp.float32)}},
        moments=(None, jnp.int32(step), {"mu": w * 1e-3}),
        step=jnp.uint32(step),
    )


def abstract(state, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding and sharding(x)), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        assert x.shape == y.shape


@pytest.fixture
def saved(tmp_path):
    """A run with checkpoints of steps 20 and 40."""
    with Checkpointer(tmp_path) as ckpt:
        for step in (20, 40):
            assert ckpt.save(step, make_state(step), {"config": {"seed": 1}, "data_iterator": b"\x00\xff"})
    return tmp_path


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


def save_and_wait(ckpt: Checkpointer, step: int, state) -> None:
    ckpt.save(step, state)
    ckpt.wait()


def files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


# ---- back to the bit


def test_state_and_extra_come_back(saved):
    with Checkpointer(saved) as ckpt:
        state, extra, step = ckpt.restore(abstract(make_state()))
        assert (step, ckpt.steps(), ckpt.latest_step()) == (40, [20, 40], 40)
        assert extra == ckpt.read_extra() == {"config": {"seed": 1}, "data_iterator": b"\x00\xff"}
        assert_same(state, make_state(40))
        assert_same(ckpt.restore(abstract(make_state()), step=20)[0], make_state(20))


def test_part_of_a_state_can_be_read_alone(saved):
    with Checkpointer(saved) as ckpt:
        state, _, _ = ckpt.restore({"ema": abstract(make_state().ema)}, partial=True)
    assert_same(state, {"ema": make_state(40).ema})


def test_8_to_4_to_8_devices(tmp_path):
    eight = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    four = Mesh(np.array(jax.devices()[:4]).reshape(4, 1), ("data", "fsdp"))

    def on(mesh, spec):
        return lambda x: NamedSharding(mesh, spec if x.ndim == 2 else P())

    state = make_state(1)
    sharded = jax.tree.map(lambda x: jax.device_put(x, on(eight, P("fsdp"))(x)), state)
    places = [on(four, P(None, "data")), on(eight, P(("fsdp", "data"))), None, on(eight, P("data", "fsdp"))]
    for i, place in enumerate(places):
        with Checkpointer(tmp_path / str(i)) as ckpt:
            ckpt.save(1, sharded)
            sharded, _, _ = ckpt.restore(abstract(state, place))
        assert_same(sharded, state)
        if place is not None:
            assert sharded.params["blocks"]["w"].sharding == place(state.params["blocks"]["w"])


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    update = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = {"w": jnp.zeros((500, 1000))}
    with Checkpointer(tmp_path) as ckpt:
        ckpt.save(1, state)
        for _ in range(10):
            state = {"w": update(state["w"])}
        restored, _, _ = ckpt.restore(abstract(state))
    np.testing.assert_array_equal(restored["w"], 0)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_orbax_alone_reads_it(saved):
    with ocp.PyTreeCheckpointer() as orbax:
        tree = orbax.restore(saved / "40" / "state")
    np.testing.assert_array_equal(tree["params"]["blocks"]["w"], make_state(40).params["blocks"]["w"])


def test_sha256sum_agrees(saved):
    subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=saved / "40", check=True)


# ---- damage


def test_every_flipped_bit_is_found(saved):
    """In every file, at its start, its end and places between, in data and in what orbax never reads."""
    ckpt, rng = Checkpointer(saved), np.random.default_rng(0)
    target, files = abstract(make_state()), files_of(saved / "40")
    assert len(files) > 8
    flips = 0
    for path in files:
        size = path.stat().st_size
        for position in {0, size - 1, *rng.integers(0, size, 4).tolist()}:
            bit = int(rng.integers(8))
            flip(path, position, bit)
            with pytest.raises(CheckpointError, match="40"):
                ckpt.restore(target, step=40)
            flip(path, position, bit)
            flips += 1
    assert flips > 60
    assert ckpt.restore(target)[2] == 40  # with every bit back in its place
    ckpt.close()


def test_damage_is_named_and_the_previous_checkpoint_used(tmp_path, caplog):
    state = {"params": {"a": jnp.ones((64, 64)), "b": jnp.zeros((64, 64)), "c": jnp.arange(4096.0)}}
    with Checkpointer(tmp_path, asynchronous=False) as ckpt:
        ckpt.save(20, state)
        ckpt.save(40, state)
    needle = np.arange(4096.0, dtype=np.float32).tobytes()
    for path in files_of(tmp_path / "40" / "state"):
        if (at := path.read_bytes().find(needle)) >= 0:
            flip(path, at + 1000, 3)
    with Checkpointer(tmp_path) as ckpt, caplog.at_level(logging.WARNING):
        restored, _, step = ckpt.restore(abstract(state))
        assert step == 20
        assert_same(restored, state)
        damage = next(record.getMessage() for record in caplog.records if "damaged" in record.getMessage())
        assert str(tmp_path / "40") in damage
        assert damage.endswith("leaves hit: params/c")
        assert "file state/" in damage
        ckpt.save(40, state)  # the run comes by again
        ckpt.wait()
        assert ckpt.restore(abstract(state))[2] == 40
    assert sorted(p.name for p in tmp_path.iterdir()) == ["20", "40", "40.damaged"]


@pytest.mark.parametrize("damage", ["missing", "empty", "extra", "no sums", "nothing", "renamed"])
def test_partial_checkpoints_are_passed_over(saved, damage):
    path = saved / "40"
    largest = max(files_of(path / "state"), key=lambda p: p.stat().st_size)
    match damage:
        case "missing":
            largest.unlink()
        case "empty":
            largest.write_bytes(b"")
        case "extra":
            (path / "state" / "more").write_bytes(b"x")
        case "no sums":
            (path / "SHA256SUMS").unlink()
        case "nothing":
            path = path.rename(saved / "elsewhere")
            (saved / "40").mkdir()
        case "renamed":
            path.rename(saved / "60")
    with Checkpointer(saved) as ckpt:
        assert ckpt.restore(abstract(make_state()))[2] == 20


def test_if_all_are_damaged_each_is_listed_and_none_used(saved):
    for step in (20, 40):
        flip(saved / str(step) / "extra.json", 3, 0)
    with Checkpointer(saved) as ckpt:
        with pytest.raises(
            CheckpointError, match=r"no sound checkpoint(?s:.*)40: file extra.json(?s:.*)20: file extra"
        ):
            ckpt.restore(abstract(make_state()))
        with pytest.raises(CheckpointError, match="no sound checkpoint"):
            ckpt.read_extra()


def test_an_array_that_was_written_wrong_is_found_by_its_fingerprint(saved):
    """As if the disk had swapped data before the files were summed: the sums agree, the array does not."""
    leaves = json.loads((saved / "40" / "leaves.json").read_text())
    leaves["leaves"]["ema/blocks/w"]["fingerprint"] = "0" * 16
    (saved / "40" / "leaves.json").write_text(json.dumps(leaves))
    write_sums(saved / "40")
    with Checkpointer(saved) as ckpt, pytest.raises(CheckpointError, match="ema/blocks/w do not match"):
        ckpt.restore(abstract(make_state()), step=40)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.int8, jnp.bool, jnp.float8_e4m3fn])
def test_fingerprint_sees_every_bit_and_place_and_no_sharding(dtype):
    x = np.asarray(jnp.arange(48).reshape(8, 6) % 5).astype(dtype)
    whole = fingerprint(jnp.asarray(x))
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    assert (fingerprint(jax.device_put(x, NamedSharding(mesh, P("fsdp")))) == whole).all()
    swapped = x.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert (fingerprint(jnp.asarray(swapped)) != whole)[:2].all()
    for place in (0, 17, 47):
        for bit in range(1 if dtype == jnp.bool else 8 * x.itemsize):
            flipped = x.copy()
            flipped.view(np.uint8).reshape(48, -1)[place, bit // 8] ^= np.uint8(1 << bit % 8)
            assert (fingerprint(jnp.asarray(flipped)) != whole)[:2].any()


# ---- another model


def test_another_model_is_refused_by_name(saved):
    other = make_state(size=4)
    other.params["blocks"]["new"] = jnp.zeros(3)
    del other.ema["blocks"]["b"]
    other.params["blocks"]["b"] = other.params["blocks"]["b"].astype(jnp.float32)
    with Checkpointer(saved) as ckpt, pytest.raises(CheckpointError) as error:
        ckpt.restore(abstract(other))
    message = str(error.value)
    assert "missing from the checkpoint: params/blocks/new" in message
    assert "only in the checkpoint: ema/blocks/b" in message
    assert "params/blocks/w: (16, 8) float32 in the checkpoint, (16, 4) float32 in the model" in message
    assert "params/blocks/b: (8,) bfloat16 in the checkpoint, (8,) float32 in the model" in message


def test_no_checkpoint_is_an_error_and_latest_step_says_none(tmp_path):
    with Checkpointer(tmp_path / "none") as ckpt:
        assert ckpt.latest_step() is None
        with pytest.raises(CheckpointError, match="there is no checkpoint under"):
            ckpt.restore(abstract(make_state()))


# ---- saving


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


# ---- parameters alone


def test_bare_parameters_are_plain_orbax_both_ways(tmp_path):
    params = make_state(3).params
    save_params(tmp_path / "ours", params)
    assert_same(load_params(tmp_path / "ours", abstract(params)), params)
    with ocp.StandardCheckpointer() as orbax:
        assert_same(orbax.restore(tmp_path / "ours", abstract(params)), params)
        orbax.save(tmp_path / "theirs", params)
    assert_same(load_params(tmp_path / "theirs", abstract(params)), params)
    with pytest.raises(CheckpointError, match="exists already"):
        save_params(tmp_path / "ours", params)
    with pytest.raises(CheckpointError, match="is not an orbax checkpoint"):
        load_params(tmp_path / "nowhere", params)
    with pytest.raises(CheckpointError, match="missing from the checkpoint: x"):
        load_params(tmp_path / "ours", {"x": jnp.zeros(2)})

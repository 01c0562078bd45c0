"""Damaged checkpoints: named, passed over, never used in part."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.training.states import abstract, assert_same, files_of, flip, make_state
from zigma_jax.training.array_store import CheckpointError
from zigma_jax.training.checkpoint import Checkpointer
from zigma_jax.training.integrity import fingerprint, write_sums


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


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "no sums", "fewer sums", "nothing", "renamed"])
def test_partial_checkpoints_are_passed_over(saved, damage):
    path = saved / "40"
    largest = max(files_of(path / "state"), key=lambda p: p.stat().st_size)
    match damage:
        case "missing":
            largest.unlink()
        case "empty":
            largest.write_bytes(b"")
        case "truncated":
            largest.write_bytes(largest.read_bytes()[:-7])
        case "no sums":
            (path / "SHA256SUMS").unlink()
        case "fewer sums":
            lines = (path / "SHA256SUMS").read_text().splitlines(keepends=True)
            (path / "SHA256SUMS").write_text("".join(lines[:-1]))
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


def test_foreign_files_are_no_damage(saved, caplog):
    for name in (".DS_Store", "state/.DS_Store", "state/._manifest.ocdbt", "Thumbs.db", "notes/mine.txt"):
        (saved / "40" / name).parent.mkdir(exist_ok=True)
        (saved / "40" / name).write_bytes(b"\0\1")
    (saved / ".DS_Store").write_bytes(b"")
    with Checkpointer(saved) as ckpt:
        assert ckpt.restore(abstract(make_state()))[2] == 40
        ckpt.save(60, make_state(60))
    assert not caplog.records
    assert ckpt.steps() == [20, 40, 60]


def test_a_step_that_never_was_is_not_called_damaged(saved, caplog):
    with Checkpointer(saved) as ckpt, pytest.raises(CheckpointError, match=r"no checkpoint of step 5 .* but of 20, 40"):
        ckpt.restore(abstract(make_state()), step=5)
    assert not caplog.records


def test_part_of_a_state_is_read_without_hashing_the_rest_and_its_damage_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("zigma_jax.training.checkpoint.check_sums", lambda _: pytest.fail("all files were hashed"))
    state = {"params": {"w": jnp.ones((64, 64))}, "ema": {"w": jnp.arange(4096.0)}}
    target = {"ema": abstract(state["ema"])}
    needle = np.arange(4096.0, dtype=np.float32).tobytes()
    with Checkpointer(tmp_path) as ckpt:
        for step in (20, 40):
            ckpt.save(step, state)
        assert ckpt.restore(target, partial=True)[2] == 40
        for path in files_of(tmp_path / "40"):
            if (at := path.read_bytes().find(needle)) >= 0:
                flip(path, at + 1000, 3)
        restored, _, step = ckpt.restore(target, partial=True)
    assert step == 20
    assert_same(restored, {"ema": state["ema"]})

"""Checkpoints: what was saved comes back to the bit, or the damage is named; nothing in between."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.training.states import abstract, assert_same, make_state
from zigma_jax.training.array_store import CheckpointError, load_params, save_params
from zigma_jax.training.checkpoint import Checkpointer


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

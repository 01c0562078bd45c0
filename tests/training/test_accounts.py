"""What a compiled step says: collectives as often as they run, and that FSDP's carry weights, whatever the batch."""

import dataclasses
import functools

import jax
import pytest

from tests.training.tiny import tiny_config
from zigma_jax.errors import ConfigError
from zigma_jax.training.accounts import Collective, collectives, total_bytes
from zigma_jax.training.dry_run import compile_step, find_topology
from zigma_jax.training.sharding import make_mesh
from zigma_jax.training.state import make_optimizer, make_state

PROGRAM = """HloModule jit_f

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %add = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %g = bf16[8,4]{1,0} all-gather(%x), replica_groups=mesh['data'=1,'fsdp'=8] {'fsdp'}, dimensions={0}
  ROOT %t = (s32[], bf16[8,4]{1,0}) tuple(%i, %g)
}

ENTRY %main (p0: f32[4]) -> f32[4] {
  %w = (s32[], bf16[8,4]{1,0}) while(%t0), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %r = (f32[4]{0}, f32[]) all-reduce(%y, %z), replica_groups={{0,1}}, to_apply=%sum
  ROOT %s = f32[4]{0} reduce-scatter(%q), replica_groups={{0,1}}, dimensions={0}, to_apply=%sum
}
"""


def test_collectives_are_counted_as_often_as_they_run():
    found = collectives(PROGRAM)
    assert found["all-gather"] == Collective("all-gather", 6, 6 * 8 * 4 * 2)
    assert found["all-reduce"] == Collective("all-reduce", 1, 4 * 4 + 4)
    assert found["reduce-scatter"] == Collective("reduce-scatter", 1, 2 * 4 * 4)  # its operand
    assert total_bytes(found) == 384 + 20 + 32


def test_layouts_of_a_tpu_have_parentheses_of_their_own():
    program = """%less (p: (s32[], f32[4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(24)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %c = f32[4]{0:T(128)} collective-permute(%x), source_target_pairs={{0,1}}
}

ENTRY %main.1 (p: f32[8,128]) -> f32[8,128] {
  %w = (s32[]{:T(128)}, f32[4]{0:T(128)}) while(%t), condition=%less, body=%body
  %a = (f32[8,128]{1,0:T(8,128)S(1)}, bf16[2]{0:T(256)(128)(2,1)}) all-reduce(%x, %y), to_apply=%sum
  ROOT %b = f32[8,128]{1,0:T(8,128)} all-gather(%z), dimensions={0}
}
"""
    found = collectives(program)
    assert found["all-reduce"] == Collective("all-reduce", 1, 4 * 8 * 128 + 4)
    assert found["all-gather"] == Collective("all-gather", 1, 4 * 8 * 128)
    assert found["collective-permute"] == Collective("collective-permute", 24, 24 * 4 * 4)  # as its condition says


@functools.cache
def account(batch, fsdp=8):
    config = tiny_config("unused", train__batch_size=batch, train__fsdp=fsdp, model__depth=4, model__hidden_size=64)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    mesh = make_mesh(fsdp)
    _, _, state = make_state(config.model, optimizer, 0, mesh)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    return compile_step(config, mesh), size


@pytest.fixture
def divided(monkeypatch):
    monkeypatch.setattr("zigma_jax.models.placement.SMALLEST_DIVIDED", 256)


def test_fsdp_moves_weights_whatever_the_batch(divided):
    """Gathered for each pass, gradients reduced: thrice the parameters at most, and nothing grows with the batch."""
    (small, size), (large, _) = account(16), account(64)
    assert total_bytes(large.exchanged) <= 1.2 * total_bytes(small.exchanged)
    assert 1.9 * size < total_bytes(large.exchanged) < 1.3 * 3 * size
    assert large.arguments < 16 * size / 8 * 1.5  # parameters, average and moments, an eighth each


def test_mesh_sizes_that_do_not_fit_are_named():
    for fsdp, seq, message in (
        (3, 1, r"config.train.fsdp = 3: must divide the number of devices, 8"),
        (1, 3, r"config.train.seq = 3: must divide the number of devices, 8"),
        (8, 2, r"config.train.fsdp = 8 and config.train.seq = 2: their product, 16, must divide"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_mesh(fsdp, seq=seq)
    config = tiny_config("unused")  # 2 × 2 tokens
    for seq, message in ((8, "must divide the model's 4 tokens"), (2, "leaves a device 2 tokens")):
        sized = dataclasses.replace(config, train=dataclasses.replace(config.train, seq=seq))
        with pytest.raises(ConfigError, match=rf"config.train.seq = {seq}: {message}"):
            compile_step(sized, make_mesh(seq=seq))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "as v5e-8 or v5e:2x4"),
        ("v9-8", "of v4, v5e, v5p, v6e"),
        ("v5e-6", "a power of 2"),
        ("a.txtpb:8", "no file"),
    ],
)
def test_topologies_that_there_are_not(name, message):
    with pytest.raises(ConfigError, match=message):
        find_topology(name)

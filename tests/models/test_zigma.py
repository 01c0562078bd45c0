"""Behaviour of the model that does not need the official code to check."""

import dataclasses
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from zigma_kernels.dispatch import compiling_for

import zigma_jax as zj
from tests.random_model import random_model
from zigma_jax.interop.weights import parameter_shapes
from zigma_jax.models.embeddings import patchify
from zigma_jax.models.zigma import REMAT_POLICIES, drop_path_scales, remat_policy

TINY = zj.ZigMaConfig(sample_shape=(6, 4, 3), patch_size=2, hidden_size=16, depth=3, scan="zigzag2", state_size=4)


def inputs(cfg, batch=2):
    x = jax.random.normal(jax.random.key(1), (batch, *cfg.sample_shape))
    t = jnp.linspace(0.2, 0.8, batch)
    y = None
    if cfg.num_classes:
        y = jnp.arange(batch) % cfg.num_classes
    if cfg.context_size:
        y = jax.random.normal(jax.random.key(2), (batch, 5, cfg.context_size))
    return x, t, y


def test_parameter_count_of_zigma_b_1():
    cfg = zj.presets["zigma_b_1"]
    d, inner, n, rank, width = 768, 1536, 16, 48, 4
    mixer = (
        d * 2 * inner  # in_proj
        + (width + 1) * inner  # convolution and its bias
        + inner * (rank + 2 * n)  # x_proj
        + (rank + 1) * inner  # dt_proj and its bias
        + (n + 1) * inner  # A_log, D
        + inner * d  # out_proj
    )
    block = mixer + d + (d + 1) * 3 * d  # norm, modulation
    time_embedding = (256 + 1) * d + (d + 1) * d
    positions = 32 * 32 * d
    total = 24 * block + (4 + 1) * d + time_embedding + positions + d + (d + 1) * 4
    assert total == 134_624_260
    assert sum(leaf.size for leaf in parameter_shapes(cfg).values()) == total


def test_conditions_start_as_large_as_the_configuration_says():
    for condition, name in (
        ({"num_classes": 5, "null_class": True}, "class_embed"),
        ({"context_size": 6}, "context_embed"),
    ):
        official, larger = (
            nnx.to_pure_dict(nnx.state(zj.ZigMa(dataclasses.replace(TINY, **condition, **scale), rngs=nnx.Rngs(0))))
            for scale in ({}, {"condition_scale": 8.0})
        )
        scaled = jax.tree.map(lambda leaf: 8 * leaf, official[name])
        np.testing.assert_array_equal(*(jax.tree.leaves(tree)[-1] for tree in (larger[name], scaled)))
        assert all(
            (a == b).all()
            for part in official
            if part != name
            for a, b in zip(jax.tree.leaves(official[part]), jax.tree.leaves(larger[part]), strict=True)
        )


def test_presets_are_the_official_sizes():
    presets = {name: cfg for name, cfg in zj.presets.items() if isinstance(cfg, zj.ZigMaConfig)}
    assert len(presets) == 15
    sizes = {name[6]: (cfg.hidden_size, cfg.depth) for name, cfg in presets.items()}
    assert sizes == {"s": (368, 24), "b": (768, 24), "m": (768, 48), "l": (1024, 48), "h": (1536, 48)}
    assert zj.presets["zigma_l_2"].patch_size == 2


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"scan": "sweep2", "pos_embed": "sincos"},
        {"scan": "hilbert8", "pos_embed": "per_layer", "num_classes": 3, "null_class": True},
        {"scan": "random2", "context_size": 5},
        {"sample_shape": (3, 4, 6, 2), "scan": "video_st", "temporal_pos_embed": True, "num_classes": 4},
        {"sample_shape": (3, 4, 6, 2), "scan": "zigzag3d4"},
        {"sample_shape": (3, 4, 6, 2), "scan": "sweep2", "temporal_pos_embed": True},
        {"sample_shape": (5, 3, 2), "patch_size": 1, "scan": "zigzag8", "depth": 11},
    ],
    ids=lambda change: change.get("scan", "plain"),
)
def test_every_kind_of_model(change):
    """Non-square samples; the output depends on the time; bfloat16 computes the same thing."""
    cfg = dataclasses.replace(TINY, **change)
    model = random_model(cfg, scale=0.1)
    x, t, y = inputs(cfg)

    def run(model):
        graphdef, state = nnx.split(model)
        both = jax.tree.map(lambda a: jnp.concatenate([a, a]), x)
        times = jnp.concatenate([t, t[::-1]])
        conditions = None if y is None else jnp.concatenate([y, y])
        return np.split(jax.jit(lambda s, *a: nnx.merge(graphdef, s)(*a))(state, both, times, conditions), 2)

    out, at_other_times = run(model)
    assert out.shape == x.shape
    assert out.dtype == jnp.float32
    assert not np.allclose(out, at_other_times, atol=1e-4)

    half, _ = run(model_like(model, dtype="bfloat16"))
    assert half.dtype == jnp.float32
    # bfloat16 keeps 8 bits; a few roundings in sequence in every layer
    assert np.sqrt(np.mean((half - out) ** 2) / np.mean(out**2)) < cfg.depth * 2**-7


@pytest.mark.parametrize("change", [{"num_classes": 3}, {"context_size": 5}])
def test_the_condition_counts(change):
    model = random_model(dataclasses.replace(TINY, **change))
    x, t, y = inputs(model.cfg)
    assert y is not None
    outputs = jax.jit(lambda y: model(x, t, y))
    assert not np.allclose(outputs(y), outputs(y[::-1]), atol=1e-2)


def model_like(model, **change):
    """The same weights under a changed configuration."""
    graphdef = nnx.graphdef(
        nnx.eval_shape(lambda: zj.ZigMa(dataclasses.replace(model.cfg, **change), rngs=nnx.Rngs(0)))
    )
    return nnx.merge(graphdef, nnx.state(model))


@pytest.mark.slow
def test_remat_and_unrolling_change_nothing_but_memory():
    model = random_model(TINY)
    x, t, _ = inputs(TINY)

    def gradient(model):
        graphdef, state = nnx.split(model)
        return jax.jit(jax.grad(lambda s: jnp.sum(nnx.merge(graphdef, s)(x, t) ** 2)))(state)

    plain = gradient(model)
    for change in ({"remat": "dots", "unroll": True}, {"remat": "block"}, {"remat": "mixer"}):
        saved = gradient(model_like(model, **change))
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(saved), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(a))), err_msg=str(change))


def test_remat_of_the_platform():
    assert remat_policy("auto") is REMAT_POLICIES["block"]
    with compiling_for(SimpleNamespace(platform="cuda", device_kind="H100", compute_capability="9.0")):
        assert remat_policy("auto") is REMAT_POLICIES["mixer"]
    assert remat_policy("none") is None


def test_one_program_for_all_orders():
    """Orders are data: the loop over layers has one body, whose size does not grow with the number of orders."""

    def lines(**change):
        cfg = dataclasses.replace(TINY, depth=8, remat="block", **change)
        graphdef, state = nnx.split(nnx.eval_shape(lambda: zj.ZigMa(cfg, rngs=nnx.Rngs(0))))
        x, t, _ = inputs(cfg)
        gradient = jax.jit(jax.grad(lambda s: jnp.sum(nnx.merge(graphdef, s)(x, t))))
        return len(gradient.lower(state).as_text().splitlines())

    assert lines(scan="zigzag8") <= 1.1 * lines(scan="zigzag1")
    assert lines(scan="zigzag8", attention_every=2, head_size=8) <= 1.1 * lines(
        scan="zigzag1", attention_every=2, head_size=8
    )


def test_what_remat_recomputes():
    """Of the kernels of a layer: "dots" recomputes none of the scan's, "block" its forward pass."""

    def scans(remat):
        cfg = dataclasses.replace(TINY, depth=1, remat=remat, scan_implementation="mosaic_gpu")
        graphdef, state = nnx.split(nnx.eval_shape(lambda: zj.ZigMa(cfg, rngs=nnx.Rngs(0))))
        x, t, _ = inputs(cfg)
        gradient = jax.jit(jax.grad(lambda s: jnp.sum(nnx.merge(graphdef, s)(x, t))))
        return gradient.trace(state).lower(lowering_platforms=("cuda",)).as_text().count("@mosaic_gpu_v2")

    assert (scans("dots"), scans("block")) == (2, 3)


def test_layers_in_groups_are_layers_one_by_one():
    """Depth 8 under three orders: two scanned groups and two layers after them, the same as a plain loop."""
    cfg = dataclasses.replace(TINY, scan="random3", depth=8)
    model = random_model(cfg, scale=0.2)
    x, t, _ = inputs(cfg)
    graphdef, layers = nnx.split(model.blocks)

    @jax.jit
    def both(x, t):
        c, _ = model._condition(t, None)
        tokens = model._add_positions(model.patch_embed(patchify(x, cfg.patch_size)))
        carry = tokens
        for i in range(cfg.depth):
            block = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], layers))
            carry = block(carry, c, None, model.plan.layer(i), None)
        return model._apply_blocks(tokens, c, None, None), carry

    grouped, one_by_one = both(x, t)
    np.testing.assert_allclose(grouped, one_by_one, rtol=1e-4, atol=1e-4)


def test_initialisation_is_the_official_one():
    cfg = dataclasses.replace(TINY, hidden_size=64, depth=4, scan="sweep2", num_classes=10, state_size=16)
    model = zj.ZigMa(cfg, rngs=nnx.Rngs(3))
    blocks, ssm = model.blocks, model.blocks.mixer.ssm
    assert float(jnp.abs(blocks.modulation.kernel[...]).max()) == 0
    np.testing.assert_allclose(np.exp(ssm.A_log[...]), np.broadcast_to(np.arange(1, 17), (4, 128, 16)), rtol=1e-5)
    assert np.all(np.asarray(ssm.D[...]) == 1)
    dt = np.asarray(jax.nn.softplus(ssm.dt_bias[...]))
    assert dt.min() > 0.9e-3
    assert dt.max() < 0.11
    assert np.ptp(np.log(dt)) > 3  # log-uniform over two decades
    assert np.all(np.asarray(blocks.mixer.ssm_reverse.dt_bias[...]) == 0)
    for kernel, bound in (
        (blocks.mixer.in_proj.kernel, 64**-0.5),
        (blocks.mixer.out_proj.kernel, 128**-0.5 / 4**0.5),
        (ssm.dt_proj.kernel, 4**-0.5),
        (ssm.conv_kernel, 0.5),
        (model.out.kernel, 64**-0.5),
        (model.patch_embed.kernel, (6 / (12 + 64)) ** 0.5),
    ):
        largest = float(jnp.abs(kernel[...]).max())
        assert 0.95 * bound < largest <= bound
    assert 0.015 < float(jnp.std(model.class_embed.embedding[...])) < 0.025
    layers = np.asarray(blocks.mixer.in_proj.kernel[...])
    assert not np.allclose(layers[0], layers[1])  # every layer draws its own


def test_stochastic_depth():
    """Off without a key; by sample; unbiased; rates grow from 0 as the original's."""
    (x, t, _), run = inputs(TINY, batch=4), jax.jit(random_model(TINY))
    np.testing.assert_array_equal(run(x, t), run(x, t))
    dropped = run(x, t, key=jax.random.key(0))
    assert not np.allclose(dropped, run(x, t))

    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(4))
    np.testing.assert_array_equal(dropped, run(x, t, key=keys))
    alone = run(x[2:3], t[2:3], key=keys[2:3])
    np.testing.assert_allclose(alone, dropped[2:3], rtol=1e-4, atol=1e-5)

    scales = np.asarray(drop_path_scales(jax.random.key(1), 4000, 4, 0.3))
    assert scales.shape == (5, 4000)
    rates = np.array([0, 0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose((scales == 0).mean(1), rates, atol=0.03)  # 4 standard errors of 4000 draws
    np.testing.assert_allclose(scales.mean(1), 1, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sample_shape": (33, 33, 3)},
            "patch_size = 2: must divide the sample's height and width, which are 33 × 33",
        ),
        ({"sample_shape": (4, 4)}, "sample_shape = .*must be"),
        ({"depth": 0}, "depth = 0: must be at least 1"),
        ({"conv_width": 5}, "conv_width = 5: must be 2, 3 or 4"),
        ({"pos_embed": "rotary"}, "pos_embed = 'rotary': must be one of none, sincos, learned, per_layer"),
        ({"dtype": "float16"}, "dtype = 'float16': must be one of float32, bfloat16"),
        ({"num_classes": 2, "context_size": 3}, "exclude each other"),
        ({"null_class": True}, "null_class = True: needs num_classes"),
        ({"temporal_pos_embed": True}, "temporal_pos_embed = True: needs a video"),
        ({"drop_path_rate": 1.0}, "drop_path_rate = 1.0"),
        ({"scan": "zigzag9"}, "zigzag9"),
        ({"scan": "video_sst"}, "video"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        zj.ZigMa(dataclasses.replace(TINY, **change), rngs=nnx.Rngs(0))


def test_inputs_that_do_not_fit_are_refused():
    model = random_model(TINY)
    x, t, _ = inputs(TINY)
    with pytest.raises(ValueError, match=r"x has shape \(2, 4, 4, 3\): the model takes \(batch, 6, 4, 3\)"):
        model(x[:, :4], t)
    with pytest.raises(ValueError, match="takes no condition"):
        model(x, t, jnp.zeros(2, jnp.int32))
    classes = random_model(dataclasses.replace(TINY, num_classes=3))
    with pytest.raises(ValueError, match="a model with 3 classes takes labels"):
        classes(x, t)
    text = random_model(dataclasses.replace(TINY, context_size=5))
    with pytest.raises(ValueError, match=r"takes tokens \(batch, tokens, 5\)"):
        text(x, t, jnp.zeros((2, 7, 4)))
    with pytest.raises(ValueError, match=r"y.mask = bool\[2, 6\]: must be bool\[2, 7\], one a token"):
        text(x, t, zj.Text(jnp.zeros((2, 7, 5)), jnp.ones((2, 6), bool)))
    with pytest.raises(ValueError, match="a model with 3 classes takes labels"):
        classes(x, t, zj.Text(jnp.zeros((2, 7, 5))))


def test_what_fills_up_a_caption_changes_nothing():
    """However much there is of it, and whatever it holds; without a mask every token counts."""
    model = random_model(dataclasses.replace(TINY, context_size=5))
    x, t, tokens = inputs(model.cfg)
    assert tokens is not None
    call = jax.jit(model)
    bare = call(x, t, tokens)
    np.testing.assert_array_equal(call(x, t, zj.Text(tokens)), bare)
    for fill, length in ((0.0, 8), (jnp.nan, 8), (1e30, 24)):
        longer = jnp.full((2, length, 5), fill).at[:, :5].set(tokens)
        seen = jnp.broadcast_to(jnp.arange(length) < 5, (2, length))
        np.testing.assert_allclose(call(x, t, zj.Text(longer, seen)), bare, rtol=1e-5, atol=1e-6)
    halved = jnp.array([[True] * 5, [True] * 2 + [False] * 3])
    found = call(x, t, zj.Text(tokens, halved))
    np.testing.assert_allclose(found[0], bare[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], call(x, t, tokens[:, :2])[1], rtol=1e-5, atol=1e-6)
    assert np.abs(found[1] - bare[1]).max() > 1e-3


COMPILE = """
import dataclasses, sys, time, jax, jax.numpy as jnp, zigma_jax as zj
from flax import nnx

def seconds(depth):
    cfg = dataclasses.replace(zj.presets["zigma_b_1"], depth=depth, remat="block")
    graphdef, state = nnx.split(nnx.eval_shape(lambda: zj.ZigMa(cfg, rngs=nnx.Rngs(0))))
    x, t = jax.ShapeDtypeStruct((1, *cfg.sample_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    loss = lambda state, x, t: jnp.mean(nnx.merge(graphdef, state)(x, t, key=jax.random.key(0)) ** 2)
    jax.clear_caches()
    start = time.perf_counter()
    jax.jit(jax.value_and_grad(loss)).lower(state, x, t).compile()
    return time.perf_counter() - start

print(min(seconds(24), seconds(24)), min(seconds(8), seconds(8)))
"""


@pytest.mark.slow
def test_compile_time_does_not_grow_with_depth():
    """The training step of zigma_b_1 at 1024 tokens: depth 24 compiles in at most 1.3 times the time of depth 8."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=True)
    deep, shallow = map(float, done.stdout.split())
    assert deep < 1.3 * shallow

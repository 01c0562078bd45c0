"""Attention, Mamba-2 and hybrids in ZigMa's block: where the visiting order matters and where it does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zigma_jax as zj
from tests.random_model import random_model
from zigma_jax.errors import ConfigError
from zigma_jax.interop import load_official, save_official
from zigma_jax.models.attention import SelfAttention, rotate
from zigma_jax.models.linear import Linear

BASE = zj.ZigMaConfig(
    sample_shape=(4, 4, 3),
    patch_size=1,
    hidden_size=16,
    depth=4,
    head_size=8,
    scan="zigzag2",
    state_size=4,
    pos_embed="none",
    num_classes=3,
)
KINDS = {
    "mamba2": {"mixer": "mamba2"},
    "attention": {"mixer": "attention", "qk_norm": True},
    "hybrid": {"attention_every": 2, "mlp_ratio": 2.0},
    "hybrid2": {"mixer": "mamba2", "attention_every": 3, "rotary": True},
    "both ways": {"mixer": "mamba2", "scan": "sweep2"},
}


def make(**changes) -> zj.ZigMa:
    return random_model(dataclasses.replace(BASE, **changes))


def answer(model, x, y=None):
    t = jnp.linspace(0.2, 0.8, len(x))
    return jax.jit(lambda x: model(x, t, jnp.arange(len(x)) % 3 if y is None else y))(x)


def sample(shape=(2, 4, 4, 3)):
    return jax.random.normal(jax.random.key(1), shape)


def test_attention_alone_sees_a_set_of_tokens():
    """Without positions, tokens changed about come out changed about, in every order."""
    model, x = make(**KINDS["attention"], mlp_ratio=2.0), sample()
    turned = jnp.rot90(x, axes=(1, 2))
    np.testing.assert_allclose(answer(model, turned), jnp.rot90(answer(model, x), axes=(1, 2)), atol=1e-5)
    other = make(**KINDS["attention"], mlp_ratio=2.0, scan="random3")
    np.testing.assert_array_equal(answer(other, x), answer(model, x))


@pytest.mark.parametrize("kind", ["mamba2", "hybrid"])
def test_a_scan_follows_its_order(kind):
    x = sample()
    along = {scan: answer(make(**KINDS[kind] | {"scan": scan}), x) for scan in ("zigzag2", "sweep1", "hilbert2")}
    for one, other in (("zigzag2", "sweep1"), ("zigzag2", "hilbert2")):
        assert np.abs(along[one] - along[other]).max() > 1e-3


def test_mamba2_sees_only_what_was_visited():
    """With one layer along the raster, a token changes itself and what comes after it."""
    model, x = make(mixer="mamba2", depth=1, scan="sweep1"), sample((1, 4, 4, 3))
    changed = answer(model, x.at[0, 2, 1].add(1.0)) - answer(model, x)
    moved = np.abs(changed).max(axis=(0, -1)).reshape(-1) > 0
    assert moved.tolist() == [False] * 9 + [True] * 7


def test_which_layers_of_a_hybrid_attend():
    cfg = dataclasses.replace(BASE, depth=7, attention_every=3, scan="zigzag4")
    assert [cfg.attends(i) for i in range(7)] == [False, False, True, False, False, True, False]
    model = zj.ZigMa(cfg, rngs=nnx.Rngs(0))
    assert model.blocks.mixer.ssm.D.shape[0] == 5
    assert model.attention_blocks.mixer.qkv.kernel.shape[0] == 2


@pytest.mark.parametrize("depth", [3, 4, 6, 13])
def test_a_hybrid_is_its_layers_one_after_the_other(depth):
    """However the loop over layers is cut: scans share the orders out among themselves, layer by layer."""
    model = make(depth=depth, attention_every=3, scan="zigzag4")
    carried, scans, attends = sample((2, 16, 16)), 0, 0
    x, c = carried, jax.random.normal(jax.random.key(2), (2, 16))
    for i in range(depth):
        stack, n = (model.attention_blocks, attends) if model.cfg.attends(i) else (model.blocks, scans)
        graphdef, state = nnx.split(stack)
        block = nnx.merge(graphdef, jax.tree.map(lambda a, n=n: a[n], state))
        carried = block(carried, c, None, model.plan.layer(n), None)
        scans, attends = (scans, attends + 1) if model.cfg.attends(i) else (scans + 1, attends)
    found = model._apply_blocks(x, c, None, None)
    np.testing.assert_allclose(found, carried, rtol=1e-4, atol=1e-4)


def test_rotary_positions_are_relative():
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 14)).astype(np.float32)
    grid = (2, 5, 7)
    everywhere = [rotate(jnp.broadcast_to(jnp.asarray(a), (1, 70, 1, 14)), grid) for a in (q, k)]
    scores = np.einsum("lh,mh->lm", *(np.asarray(a)[0, :, 0] for a in everywhere)).reshape(*grid, *grid)
    for step in [(1, 0, 0), (0, 2, 0), (0, 0, 3), (1, 2, -3)]:
        pairs = [
            scores[f, r, c, f + step[0], r + step[1], c + step[2]]
            for f, r, c in np.ndindex(*grid)
            if all(0 <= a + b < n for a, b, n in zip((f, r, c), step, grid, strict=True))
        ]
        np.testing.assert_allclose(pairs, pairs[0], rtol=1e-4, atol=1e-4)
        assert abs(pairs[0] - scores[0, 0, 0, 0, 0, 0]) > 1e-4
    np.testing.assert_array_equal(everywhere[0][0, :, 0, 12:], np.broadcast_to(q[0, 0, 0, 12:], (70, 2)))


def test_norm_of_queries_and_keys_bounds_the_scores():
    model = SelfAttention(16, 2, qk_norm=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    small, large = (model(scale * sample((1, 6, 16)), None, jnp.ones((1, 16))) for scale in (1.0, 1000.0))
    np.testing.assert_allclose(large, 1000 * small, rtol=1e-3, atol=1e-2)  # values alone grow


SLOWER = ("mamba2", "hybrid", "both ways")  # the fast ones hold their parts


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in SLOWER)) for k in KINDS])
def test_remat_dtype_and_file(kind, tmp_path):
    """The gradient does not depend on what is recomputed, bfloat16 is near, and a file gives the model back."""
    model, x = make(**KINDS[kind]), sample()

    def gradient(**changes):
        other = make(**KINDS[kind] | changes)
        nnx.update(other, nnx.state(model))
        graphdef, state = nnx.split(other)

        def loss(state):
            return jnp.mean(nnx.merge(graphdef, state)(x, jnp.array([0.2, 0.8]), jnp.array([0, 1])) ** 2)

        return jax.tree.leaves(jax.jit(jax.grad(loss))(state))

    expected = gradient()
    for found, value in zip(gradient(remat="block"), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-3, atol=1e-5 * max(1.0, float(np.abs(value).max())))
    # How far a random model's answers go is how steep it is: rounding its weights alone is what bfloat16 is held to.
    rounded, half = make(**KINDS[kind]), make(**KINDS[kind], dtype="bfloat16")
    nnx.update(rounded, jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(a.dtype), nnx.state(model, nnx.Param)))
    nnx.update(half, nnx.state(model))
    many = sample((64, 4, 4, 3))
    whole = answer(model, many)

    def error(other):  # of the median sample
        return np.median([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(other, whole, strict=True)])

    assert error(answer(half, many)) < 2.5 * error(answer(rounded, many)) < 0.2

    save_official(model, tmp_path / "a.pt")
    again = load_official(tmp_path / "a.pt")
    assert again.cfg == model.cfg
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))


def test_text_and_mlp_have_their_own_modulation():
    model = make(num_classes=0, context_size=6, mlp_ratio=2.0, depth=2)
    assert model.blocks.modulation.kernel.shape == (2, 16, 9 * 16)
    x, tokens = sample(), jax.random.normal(jax.random.key(3), (2, 5, 6))
    other = answer(model, x, tokens.at[:, 0].add(1.0))
    assert np.abs(other - answer(model, x, tokens)).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "rnn"}, r"mixer = 'rnn': must be one of mamba, mamba2, attention"),
        ({"mixer": "attention", "head_size": 5}, r"head_size = 5: must divide hidden_size = 16"),
        ({"mixer": "mamba2", "head_size": 5}, r"head_size = 5: must divide inner_size = 32"),
        ({"attention_every": 2, "head_size": 5}, r"head_size = 5: must divide hidden_size = 16"),
        ({"attention_every": 5}, r"attention_every = 5: must be 0, or 2 … depth = 4"),
        ({"attention_every": 1}, r"attention_every = 1: must be 0, or 2 … depth = 4"),
        ({"attention_every": 2, "mixer": "attention"}, r"attention_every = 2: every layer has it"),
        ({"mlp_ratio": -1.0}, r"mlp_ratio = -1.0: must be in \[0, 64\]"),
        ({"mlp_ratio": 0.001}, r"mlp_ratio = 0.001: leaves the MLP no width, with hidden_size = 16"),
        ({"rotary": True}, r"rotary = True: means something to attention alone"),
        ({"rotary": True, "mixer": "attention", "head_size": 2}, r"head_size = 2: must be at least 4"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(BASE, **changes)


@pytest.mark.parametrize("tokens", [3, 50])  # fewer and more than the result has channels
def test_a_gate_in_the_matrix_is_a_gate_of_the_result(tokens):
    linear = Linear(12, 8, dtype=jnp.float32, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(linear)
    x, gate = sample((2, tokens, 12)), sample((2, 8))

    def run(product):
        return jax.value_and_grad(lambda *args: jnp.sum(jnp.sin(product(*args))), argnums=(0, 1, 2))(params, x, gate)

    gated = run(lambda params, x, gate: nnx.merge(graphdef, params).gated(x, gate))
    plain = run(lambda params, x, gate: nnx.merge(graphdef, params)(x) * gate[:, None])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gated, plain)

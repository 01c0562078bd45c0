"""SiT computes what its official code computes with the same weights, and is a backbone as every other."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import zigma_jax as zj
from tests.networks.seeded import seeded
from tests.training.tiny import tiny_config
from zigma_jax.errors import ConfigError, WeightsError
from zigma_jax.interop import load_official, save_official
from zigma_jax.interop.torch_file import write_torch
from zigma_jax.models.attention import attention
from zigma_jax.models.families import build
from zigma_jax.train import train
from zigma_jax.training.parse_config import from_dict, to_dict
from zigma_jax.training.weights import load_weights, save_weights

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "sit_small.npz")
T, Y = jnp.asarray(GOLDEN["t"]), jnp.asarray(GOLDEN["y"], jnp.int32)
PUBLISHED = {"sit_s_2": 33e6, "sit_b_2": 130e6, "sit_l_2": 458e6, "sit_xl_2": 675e6}  # parameters, from the paper


def named() -> dict[str, np.ndarray]:
    shapes = zip(GOLDEN["names"], GOLDEN["shapes"], strict=True)
    return seeded({str(name): tuple(map(int, re.findall(r"\d+", shape))) for name, shape in shapes})


def last(name: str) -> jax.Array:
    """An array of the golden file, channels last."""
    return jnp.moveaxis(GOLDEN[name], 1, -1)


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return named()


@pytest.fixture(scope="module")
def model(tensors, tmp_path_factory) -> zj.SiT:
    path = tmp_path_factory.mktemp("sit") / "SiT.pt"
    write_torch(path, {"model": {}, "ema": tensors, "args": {"model": "SiT-S/2"}})
    found = load_official(path, family="sit", num_heads=4)
    assert isinstance(found, zj.SiT)
    return found


def error(found, expected) -> float:
    return float(np.abs(found - expected).max() / np.sqrt(np.square(expected).mean()))


def test_its_answers(model):
    assert error(model(last("x"), T, Y), last("out")) < 1e-5


def test_its_guidance_of_the_first_three_channels(model):
    x, t, y = last("x")[:2], T[:2], Y[:2]
    guided = zj.guide(model, y, model.null_condition(y), 3.0, channels=3)(x, t)
    assert error(guided, last("cfg3")[:2]) < 1e-5
    for scale in (0.0, 1.0):  # at 0, too, the fourth channel is the conditional one
        found = zj.guide(model, y, model.null_condition(y), scale, channels=3)(x, t)
        np.testing.assert_allclose(found[..., 3:], model(x, t, y)[..., 3:], atol=1e-5)


def test_one_without_sigma_in_safetensors(model, tensors, tmp_path):
    rows = np.arange(32).reshape(4, 8)[:, :4].ravel()  # of each place in a patch the first four channels
    smaller = tensors | {
        "final_layer.linear.weight": tensors["final_layer.linear.weight"][rows],
        "final_layer.linear.bias": tensors["final_layer.linear.bias"][rows],
    }
    save_file(smaller, tmp_path / "a.safetensors")
    found = load_official(tmp_path / "a.safetensors", family="sit", num_heads=4)
    assert isinstance(found, zj.SiT)
    assert not found.cfg.learn_sigma
    x, t, y = last("x"), T, Y
    np.testing.assert_allclose(found(x, t, y), model(x, t, y), atol=1e-5)


def test_it_comes_back_from_a_file(model, tmp_path):
    save_official(model, tmp_path / "sit.pt")
    again = load_official(tmp_path / "sit.pt", family="sit")
    assert again.cfg == model.cfg  # the heads as well
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    shapes = nnx.eval_shape(lambda: build(zj.presets[name], rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes)))
    assert abs(count / PUBLISHED[name] - 1) < 0.01


def test_a_new_one_predicts_nothing_yet_and_learns():
    """adaLN-Zero: blocks are the identity, and the output is zero."""
    cfg = zj.SiTConfig(sample_shape=(4, 4, 2), hidden_size=16, depth=2, num_heads=2, num_classes=3)
    model = zj.SiT(cfg, rngs=nnx.Rngs(0))
    x, t, y = jnp.ones((2, 4, 4, 2)), jnp.array([0.1, 0.9]), jnp.array([0, 3])
    assert not np.any(model(x, t, y))
    graphdef, state = nnx.split(model)
    gradient = jax.grad(lambda s: jnp.mean((nnx.merge(graphdef, s)(x, t, y) - 1) ** 2))(state)
    assert np.any(gradient["out"]["kernel"][...])
    assert not np.any(gradient["pos_embed"][...])


@pytest.mark.parametrize("remat", ["dots", "block"])
def test_remat_changes_nothing(model, remat):
    other = zj.SiT(dataclasses.replace(model.cfg, remat=remat), rngs=nnx.Rngs(0))
    nnx.update(other, nnx.state(model))
    x, t, y = last("x"), T, Y

    def gradient(model):
        graphdef, state = nnx.split(model)
        return jax.jit(jax.grad(lambda s: jnp.sum(nnx.merge(graphdef, s)(x, t, y) ** 2)))(state)

    for a, b in zip(jax.tree.leaves(gradient(model)), jax.tree.leaves(gradient(other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(a).max()))


def test_attention_in_parts_is_attention(monkeypatch):
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 12, 2, 8)).astype(np.float32)

    def run(*args):
        return jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(attention(*a))), argnums=(0, 1, 2))(*args)

    whole = run(*map(jnp.asarray, (q, k, v)))
    monkeypatch.setattr("zigma_jax.models.attention._QUERIES", 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run(*map(jnp.asarray, (q, k, v))), whole)


def test_what_does_not_fit(tensors, tmp_path):
    with pytest.raises(ConfigError, match=r"SiTConfig.num_heads = 5: must divide hidden_size = 384"):
        zj.SiTConfig(num_heads=5)
    save_file(tensors, tmp_path / "sit.safetensors")
    with pytest.raises(WeightsError, match=r"no SiT of width 64 was published.*give num_heads"):
        load_official(tmp_path / "sit.safetensors", family="sit")
    with pytest.raises(ConfigError, match=r"family = 'dit': must be one of zigma, sit"):
        load_official(tmp_path / "sit.safetensors", family="dit")
    with pytest.raises(ConfigError, match=r"num_heads = 4: a zigma has none"):
        load_official(tmp_path / "sit.safetensors", num_heads=4)
    other = zj.SiTConfig(sample_shape=(8, 8, 4), patch_size=4, hidden_size=64, depth=3, num_heads=4, num_classes=10)
    with pytest.raises(WeightsError, match=r"wrong shape: x_embedder.proj.weight is \(64, 4, 2, 2\), the model needs"):
        load_official(tmp_path / "sit.safetensors", family="sit", config=other)
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="no official weights"):
        load_official(tmp_path / "other.safetensors", family="sit")


@pytest.mark.slow
def test_the_programs_train_and_draw_with_it(tmp_path):
    """By one field of a configuration; and the run's weights go through every form."""
    config = tiny_config(tmp_path, model__family="sit", model__num_heads=2, train__steps=2, sample__guidance=2.0)
    assert isinstance(config.model, zj.SiTConfig)
    assert from_dict(to_dict(config)) == config
    assert train(config, tmp_path / "run")
    model, _ = load_weights(tmp_path / "run")
    for name in ("a.pt", "a.safetensors", "a"):
        save_weights(model, tmp_path / name)
        again, _ = load_weights(tmp_path / name)
        assert again.cfg == config.model
        jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))
    with pytest.raises(ConfigError, match=r"config.model.family = 'dit': must be one of zigma, sit"):
        tiny_config(tmp_path, model__family="dit")
    with pytest.raises(ConfigError, match=r"SiTConfig.num_heads = 3: must divide hidden_size = 16"):
        tiny_config(tmp_path, model__family="sit", model__num_heads=3)

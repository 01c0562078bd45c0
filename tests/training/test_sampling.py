"""Samples depend on seed and number alone; weights travel between every form."""

import jax
import numpy as np
import pytest
from flax import nnx

import zigma_jax as zj
from tests.training.tiny import tiny_config
from zigma_jax.training.sampling import batches, choose_labels, make_sampler
from zigma_jax.training.sharding import make_mesh
from zigma_jax.training.weights import load_weights, params_of, save_weights

CONFIG = tiny_config("unused")


@pytest.fixture(scope="module")
def model():
    """A model whose blocks do something, which those of a new one do not."""
    model = zj.ZigMa(CONFIG.model, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))


def draw(model, count, batch_size, devices, seed=0):
    mesh = make_mesh(1, jax.devices()[:devices])
    sampler = make_sampler(nnx.graphdef(model), CONFIG.interpolant, CONFIG.sample, mesh, seed)
    parts = [
        np.asarray(sampler(params_of(model), indices, choose_labels(model.cfg, indices)))[:asked]
        for indices, asked in batches(count, batch_size)
    ]
    return np.concatenate(parts)


def test_batch_size_and_device_count_never_change_a_picture(model):
    expected = draw(model, 20, 20, 1)
    assert expected.shape == (20, 8, 8, 3)
    assert len(np.unique(expected[:, 0, 0, 0])) == 20
    for batch_size, devices in ((7, 1), (16, 8)):
        np.testing.assert_allclose(draw(model, 20, batch_size, devices), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(draw(model, 20, 20, 1, seed=1) - expected).min(axis=(1, 2, 3)).max() > 1e-3


def test_labels(model):
    indices = np.arange(5)
    np.testing.assert_array_equal(choose_labels(CONFIG.model, indices), indices)
    np.testing.assert_array_equal(choose_labels(CONFIG.model, indices, [3, 20]), [3, 20, 3, 20, 3])
    with pytest.raises(ValueError, match=r"labels = \[21\]: must be in 0 … 20 \(model.num_classes = 20\)"):
        choose_labels(CONFIG.model, indices, [2, 21])
    with pytest.raises(ValueError, match="the model has no classes"):
        choose_labels(zj.ZigMaConfig(), indices, [0])


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "orbax"])
def test_weights_in_every_form_come_back_to_the_bit(model, tmp_path, name):
    save_weights(model, tmp_path / name)
    back, config = load_weights(tmp_path / name)
    assert config is None
    assert back.cfg == model.cfg
    jax.tree.map(np.testing.assert_array_equal, params_of(back), params_of(model))
    with pytest.raises(ValueError, match="exists; choose another name"):
        save_weights(model, tmp_path / name)


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no workdir with checkpoints"):
        load_weights(tmp_path)

"""Samples depend on seed and number alone; weights travel between every form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zigma_jax as zj
from tests.random_model import random_model
from tests.training.tiny import tiny_config
from zigma_jax.errors import ConfigError
from zigma_jax.interop.weights import abstract_model
from zigma_jax.training.config import SampleConfig
from zigma_jax.training.sampling import batches, choose_labels, make_encoder, make_sampler, seed_key
from zigma_jax.training.sharding import make_mesh
from zigma_jax.training.weights import load_weights, params_of, save_weights

CONFIG = tiny_config("unused")


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG.model, scale=0.1)


def draw(model, count, batch_size, devices, seed=0, labels=(), cfg=CONFIG.sample):
    mesh = make_mesh(1, jax.devices()[:devices])
    sampler = make_sampler(nnx.graphdef(model), CONFIG.interpolant, cfg, mesh, seed)
    parts = [
        np.asarray(sampler(params_of(model), indices, choose_labels(model.cfg, indices, labels)))[:asked]
        for indices, asked in batches(count, batch_size)
    ]
    return np.concatenate(parts)


def test_batch_size_and_device_count_never_change_a_picture(model):
    expected = draw(model, 20, 64, 1)
    assert expected.shape == (20, 8, 8, 3)
    assert len(np.unique(expected[:, 0, 0, 0])) == 20
    for batch_size, devices in ((7, 1), (7, 8), (64, 8)):
        np.testing.assert_allclose(draw(model, 20, batch_size, devices), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(draw(model, 20, 64, 1, seed=1) - expected).min(axis=(1, 2, 3)).max() > 1e-3


@pytest.mark.parametrize(
    "cfg",
    [
        SampleConfig("sde_heun", steps=5, guidance=3.0, guidance_interval=(0.2, 0.8), shift=2.0),
        pytest.param(SampleConfig("dopri5", guidance=3.0, guidance_interval=(0.2, 0.8)), marks=pytest.mark.slow),
    ],
    ids=lambda cfg: cfg.method,
)
def test_neither_with_an_sde_nor_with_guidance(model, cfg):
    expected = draw(model, 9, 9, 1, cfg=cfg)
    np.testing.assert_allclose(draw(model, 9, 7, 8, cfg=cfg), expected, rtol=1e-4, atol=1e-4)
    assert np.isfinite(expected).all()


def test_guidance_0_draws_without_labels(model):
    """A model whose null class says something."""
    unguided, unconditional = draw(model, 4, 4, 1), draw(model, 4, 4, 1, labels=[20])
    scales = {scale: dataclasses.replace(CONFIG.sample, guidance=scale) for scale in (0.0, 3.0)}
    np.testing.assert_array_equal(draw(model, 4, 4, 1, cfg=scales[0.0]), unconditional)
    assert np.abs(unguided - unconditional).max() > 1e-3
    assert np.abs(unguided - draw(model, 4, 4, 1, cfg=scales[3.0])).max() > 1e-3


def test_encoding_undoes_drawing(model):
    """With labels and guidance, for a number of pictures that the devices do not divide."""
    cfg = SampleConfig("rk4", steps=20, guidance=1.5)
    images, mesh = draw(model, 5, 5, 1, cfg=cfg), make_mesh(1, jax.devices())
    encode = make_encoder(nnx.graphdef(model), CONFIG.interpolant, cfg, mesh)
    noise = encode(params_of(model), images, choose_labels(model.cfg, np.arange(5)))
    key = jax.random.fold_in(jax.random.key(0), 4)  # of seed 0 and sample 4
    np.testing.assert_allclose(noise[4], jax.random.normal(key, (8, 8, 3)), atol=1e-3)
    with pytest.raises(ValueError, match=r"config.sample.method = 'sde_euler': an SDE can't be run backwards"):
        make_encoder(nnx.graphdef(model), CONFIG.interpolant, SampleConfig("sde_euler"), mesh)


@pytest.mark.parametrize("fields", [{"num_classes": 0}, {"num_classes": 3}])
def test_guidance_of_a_model_that_was_not_trained_for_it_is_refused(fields):
    cfg = zj.ZigMaConfig(sample_shape=(4, 4, 3), hidden_size=8, depth=1, **fields)
    model = zj.ZigMa(cfg, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"config.sample.guidance = 2.0: needs a model that was trained with"):
        draw(model, 2, 2, 1, cfg=SampleConfig("euler", guidance=2.0))
    with pytest.raises(ValueError, match="guidance needs a model that knows what no condition is: null_class = False"):
        model.null_condition(jnp.zeros(2, int))


def test_the_null_class_fits_its_dtype():
    classes = zj.ZigMaConfig(sample_shape=(4, 4, 3), hidden_size=16, depth=1, num_classes=256, null_class=True)
    model = abstract_model(classes)
    for dtype, expected in (
        (np.uint8, jnp.int32),
        (np.int8, jnp.int32),
        (np.uint16, jnp.uint16),
        (np.int32, jnp.int32),
    ):
        null = model.null_condition(jnp.zeros(2, dtype))
        assert null.dtype == expected
        np.testing.assert_array_equal(null, [256, 256])


def test_null_condition():
    classes = zj.ZigMaConfig(sample_shape=(4, 4, 3), hidden_size=8, depth=1, num_classes=5, null_class=True)
    null = zj.ZigMa(classes, rngs=nnx.Rngs(0)).null_condition(jnp.array([1, 4]))
    np.testing.assert_array_equal(null, [5, 5])
    text = zj.ZigMaConfig(sample_shape=(4, 4, 3), hidden_size=8, depth=1, context_size=6)
    with pytest.raises(ValueError, match=r"the empty caption for a model of text: give its tokens, encoder\.null"):
        abstract_model(text).null_condition(jnp.zeros(2, int))


def test_every_seed_is_another(model):
    """Seeds below 2³² are JAX's; the others are not taken modulo 2³²."""
    data = [jax.random.key_data(seed_key(seed)).tolist() for seed in (0, 7, 2**32 - 1, 2**32, 2**32 + 7, 2**63 - 1)]
    assert len({tuple(words) for words in data}) == 6
    for seed in (0, 7, 2**31, 2**32 - 1):
        np.testing.assert_array_equal(jax.random.key_data(seed_key(seed)), jax.random.key_data(jax.random.key(seed)))
    for seed in (-1, 2**63, 2**70):
        with pytest.raises(ConfigError, match=rf"seed = {seed}: must be at least 0 and less than 2\*\*63"):
            make_sampler(nnx.graphdef(model), CONFIG.interpolant, CONFIG.sample, make_mesh(), seed)


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
    with pytest.raises(ValueError, match="a directory without checkpoints"):
        load_weights(tmp_path)

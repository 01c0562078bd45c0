"""From batches to samples: latents drawn anew at each step, and a run that goes on to the bit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.toy_autoencoder import ToyAutoencoder
from tests.training.tiny import tiny_config
from zigma_jax.data.encoded import encoded_set
from zigma_jax.data.pipeline import make_dataset, open_source
from zigma_jax.training.samples import PIXELS, Encoded, EncodedInStep, inputs
from zigma_jax.training.sharding import batch_sharding, make_mesh
from zigma_jax.training.state import make_optimizer, make_state
from zigma_jax.training.step import make_train_step, make_update, sample_keys

TOY = ToyAutoencoder.of(scale=(0.9, 1.0, 1.1), shift=(0.1, 0.0, -0.1))
ENCODED = Encoded(TOY.scale, TOY.shift)


@pytest.fixture(scope="module")
def config(data_dir):
    config = tiny_config(data_dir, data__image_size=16)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, sample_shape=(4, 4, 3), patch_size=2))


@pytest.fixture(scope="module")
def latents(config, tmp_path_factory):
    return encoded_set(open_source(config.data), config.data, TOY, cache=str(tmp_path_factory.mktemp("cache")))


@functools.cache
def programs(config, samples_id, devices, accumulate=1):
    samples = {"encoded": ENCODED, "step": EncodedInStep(TOY)}[samples_id]
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=accumulate))
    mesh = make_mesh(devices=jax.devices()[:devices])
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    graphdef, init, abstract = make_state(config.model, optimizer, config.train.seed, mesh)
    return init, make_train_step(graphdef, optimizer, config, mesh, abstract, samples), batch_sharding(mesh)


def run(config, data, samples_id, steps=3, state=None, **options):
    init, step, sharding = programs(config, samples_id, **{"devices": 1, **options})
    state = init() if state is None else jax.tree.map(jnp.array, state)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, jax.device_put(inputs(next(data), labels=True), sharding))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


def batches(config, encoded=None):
    return iter(make_dataset(config.data, global_batch=config.train.batch_size, encoded=encoded))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_training_from_the_cache_goes_on_to_the_bit(config, latents):
    whole, end = run(config, batches(config, latents), "encoded", steps=6)
    data = batches(config, latents)
    first, state = run(config, data, "encoded", steps=2)
    resumed = batches(config, latents)
    resumed.set_state(data.get_state())
    rest, again = run(config, resumed, "encoded", steps=4, state=state)
    assert first + rest == whole
    assert_equal(end, again)


@pytest.mark.slow
def test_encoding_in_the_step_is_as_from_the_cache(config, latents):
    """The same draws of the same posteriors, but for float16; here in parts and on eight devices."""
    cached, _ = run(config, batches(config, latents), "encoded")
    in_step, _ = run(config, batches(config), "step", devices=8, accumulate=2)
    np.testing.assert_allclose(in_step, cached, rtol=2e-3)


def test_eight_devices_draw_what_one_does(config, latents):
    keys = sample_keys(0, jnp.int32(0), 16)
    for samples, data in ((ENCODED, batches(config, latents)), (EncodedInStep(TOY), batches(config))):
        batch = inputs(next(data), labels=False)
        one, many = (
            jax.jit(type(samples).__call__)(samples, jax.device_put(batch, batch_sharding(make_mesh(devices=d))), keys)
            for d in (jax.devices()[:1], jax.devices())
        )
        np.testing.assert_allclose(many, one, rtol=1e-6, atol=1e-6)


def test_latents_are_drawn_anew_at_every_step_and_by_sample(latents):
    rows = latents.batch([latents.read(i, False) for i in (5, 5, 6)])
    batch = jax.device_put(inputs(rows, labels=False))
    assert batch.keys() == {"mean", "std"}
    one, two = (np.asarray(ENCODED(batch, sample_keys(0, jnp.int32(step), 3))) for step in (7, 8))
    assert np.abs(one - two).min() > 0
    assert np.abs(one[0] - one[1]).max() > 1e-3  # of the same picture
    alone = ENCODED({name: a[:1] for name, a in batch.items()}, sample_keys(0, jnp.int32(7), 1))
    np.testing.assert_array_equal(one[:1], alone)
    keys = jax.random.split(jax.random.key(0), 2000)
    many = ENCODED({name: jnp.repeat(a[:1], 2000, 0) for name, a in batch.items()}, keys)
    mean, std = (rows[name][0].astype(np.float32) for name in ("mean", "std"))
    np.testing.assert_allclose(many.mean(0), (mean - TOY.shift) * TOY.scale, atol=5 * std.max() / 2000**0.5)
    np.testing.assert_allclose(many.std(0), std * TOY.scale, rtol=0.1)


def test_without_deviations_the_mean_is_the_sample():
    keys = jax.random.split(jax.random.key(0), 2)
    mean = jnp.ones((2, 4, 4, 3), jnp.float16)
    np.testing.assert_allclose(ENCODED({"mean": mean}, keys)[1, 0, 0], (1 - np.array(TOY.shift)) * TOY.scale, rtol=1e-6)
    assert PIXELS({"image": mean}, keys) is mean


def test_the_network_is_an_argument_of_the_step_and_not_trained(config):
    """Its weights are no constants of the program, and no part of the state."""
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    graphdef, _, abstract = make_state(config.model, optimizer, config.train.seed, mesh)
    update = make_update(graphdef, optimizer, config)
    batch = {"image": jnp.zeros((16, 16, 16, 3)), "label": jnp.zeros(16, jnp.int32)}
    samples = EncodedInStep(TOY)
    program = jax.make_jaxpr(lambda state, batch, samples: update(state, batch, 0, samples))(abstract, batch, samples)
    assert all(np.size(constant) < 1000 for constant in program.consts)
    arguments = [getattr(variable.aval, "shape", None) for variable in program.jaxpr.invars]
    assert TOY.weights["kernel"].shape in arguments
    assert len(program.jaxpr.outvars) == len(jax.tree.leaves(abstract)) + 5

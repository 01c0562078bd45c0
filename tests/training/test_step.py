"""One training step: the same on any devices, untouched by what is not finite, nothing read back."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.tiny import tiny_config
from zigma_jax.training.sharding import batch_sharding, make_mesh, state_shardings
from zigma_jax.training.state import decay_mask, learning_rate, make_optimizer, make_state
from zigma_jax.training.step import make_train_step, sample_keys

CONFIG = tiny_config("unused")


def batch_of(config, seed=0):
    rng = np.random.default_rng(seed)
    shape = (config.train.batch_size, *config.model.sample_shape)
    return {
        "image": rng.uniform(-1, 1, shape).astype(np.float32),
        "label": rng.integers(0, 20, config.train.batch_size).astype(np.int32),
    }


@functools.cache
def programs(config, devices):
    mesh = make_mesh(config.train.fsdp, jax.devices()[:devices])
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    graphdef, init, abstract = make_state(config.model, optimizer, config.train.seed, mesh)
    return init, make_train_step(graphdef, optimizer, config, mesh, abstract), batch_sharding(mesh)


def start(config, devices=1):
    init, step, sharding = programs(config, devices)
    return init(), lambda state, batch: step(state, jax.device_put(batch, sharding))


def run(config, devices=1, steps=3):
    state, step = start(config, devices)
    losses, norms = [], []
    for i in range(steps):
        state, metrics = step(state, batch_of(config, i))
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    return np.array(losses), np.array(norms), jax.device_get(state.params)


@pytest.fixture(scope="module")
def on_one_device():
    return run(CONFIG)


@pytest.mark.parametrize(("fsdp", "accumulate"), [pytest.param(1, 1, marks=pytest.mark.slow), (8, 1), (2, 2)])
def test_eight_devices_compute_what_one_does(on_one_device, monkeypatch, fsdp, accumulate):
    """Data, fully sharded, and mixed in parts: the same losses within float32 summation error."""
    monkeypatch.setattr("zigma_jax.models.placement.SMALLEST_DIVIDED", 64)
    train = dataclasses.replace(CONFIG.train, fsdp=fsdp, accumulate=accumulate)
    losses, norms, _ = run(dataclasses.replace(CONFIG, train=train), devices=8)
    np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-5)
    np.testing.assert_allclose(norms, on_one_device[1], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["attention", "mamba2"])
def test_other_mixers_on_eight_devices(monkeypatch, mixer):
    monkeypatch.setattr("zigma_jax.models.placement.SMALLEST_DIVIDED", 64)
    changes = {"mixer": mixer, "head_size": 8, "mlp_ratio": 2.0, "attention_every": 2 * (mixer == "mamba2")}
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **changes))
    divided = dataclasses.replace(config, train=dataclasses.replace(config.train, fsdp=8))
    for found, expected in zip(run(divided, devices=8, steps=2)[:2], run(config, steps=2)[:2], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_fsdp_divides_parameters_moments_and_average():
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, hidden_size=128))
    mesh = make_mesh(4)
    optimizer = make_optimizer(config.optimizer, 10)
    _, _, abstract = make_state(config.model, optimizer, 0, mesh)
    shardings = jax.tree.leaves(state_shardings(abstract, mesh))
    sizes = [leaf.size for leaf in jax.tree.leaves(abstract)]
    divided = sum(n for n, s in zip(sizes, shardings, strict=True) if "fsdp" in str(s.spec))
    assert divided > 0.9 * sum(sizes)  # the rest are vectors and small projections
    kernel = abstract.params["blocks"]["mixer"]["in_proj"]["kernel"]
    assert tuple(kernel.sharding.spec) == (None, None, "fsdp")  # never the layer axis
    assert abstract.ema["blocks"]["mixer"]["in_proj"]["kernel"].sharding == kernel.sharding


def test_every_sample_has_its_own_randomness():
    """No two samples of a run draw alike, and the draws do not depend on the batch size."""
    keys = np.concatenate([jax.random.key_data(sample_keys(0, jnp.int32(step), 64)) for step in range(8)])
    assert len(np.unique(keys, axis=0)) == 8 * 64
    np.testing.assert_array_equal(
        jax.random.key_data(sample_keys(0, jnp.int32(3), 8)),
        jax.random.key_data(sample_keys(0, jnp.int32(3), 16))[:8],
    )
    x0, t = CONFIG.interpolant.sample_noise_and_time(sample_keys(0, jnp.int32(0), 64), jnp.zeros((64, 4, 4, 3)))
    assert len(np.unique(t)) == 64
    assert len(np.unique(np.asarray(x0).reshape(64, -1)[:, 0])) == 64


def test_a_step_that_is_not_finite_changes_nothing():
    state, step = start(CONFIG)
    state, _ = step(state, batch_of(CONFIG))
    before = jax.device_get(state)
    broken = batch_of(CONFIG)
    broken["image"][3, 0, 0, 0] = np.nan
    state, metrics = step(state, broken)
    after = jax.device_get(state)
    assert not np.isfinite(metrics["loss"])
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (2, 1, 1)
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    state, metrics = step(state, batch_of(CONFIG))
    assert (int(state.skipped), int(state.skipped_in_a_row)) == (1, 0)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before.params, jax.device_get(state.params))
    assert any(jax.tree.leaves(changed))


def test_the_step_reads_nothing_back():
    init, step, sharding = programs(CONFIG, 1)
    batch = jax.device_put(batch_of(CONFIG), sharding)
    state, _ = step(init(), batch)
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state, _ = step(state, batch)


def test_ema_follows_with_a_warm_up():
    state, step = start(CONFIG)
    params = [jax.device_get(state.params["out"]["kernel"])]
    for i in range(3):
        state, _ = step(state, batch_of(CONFIG, i))
        params.append(jax.device_get(state.params["out"]["kernel"]))
    ema = params[0]
    for n, new in enumerate(params[1:]):
        decay = min(0.9, (1 + n) / (10 + n))
        ema = decay * ema + (1 - decay) * new
    np.testing.assert_allclose(state.ema["out"]["kernel"], ema, rtol=1e-5)


def test_gradient_is_clipped_before_the_update():
    """Adam's first moment after one step is 0.1 of what it was given."""
    optimizer = make_optimizer(CONFIG.optimizer, 10)
    params = {"kernel": jnp.zeros(3)}

    def first_moment(gradient):
        _, state = optimizer.update({"kernel": jnp.array(gradient)}, optimizer.init(params), params)
        return optax.tree.get(state, "mu")["kernel"]

    np.testing.assert_allclose(first_moment([3e6, 0, 4e6]), [0.12, 0, 0.16], rtol=1e-5)  # norm 2, as configured
    np.testing.assert_allclose(first_moment([0.3, 0, 0.4]), [0.03, 0, 0.04], rtol=1e-5)


def test_weight_decay_is_for_linear_kernels_alone():
    _, _, abstract = make_state(CONFIG.model, optax.sgd(1.0), 0, make_mesh())
    mask = decay_mask(abstract.params)
    decayed = {
        jax.tree_util.keystr(p, simple=True, separator=".") for p, on in jax.tree_util.tree_leaves_with_path(mask) if on
    }
    assert "blocks.mixer.in_proj.kernel" in decayed
    assert not [name for name in decayed if not name.endswith(".kernel")]


def test_learning_rate_warms_up_and_falls():
    cfg = dataclasses.replace(CONFIG.optimizer, learning_rate=1.0, warmup_steps=4, schedule="cosine")
    schedule = learning_rate(cfg, 12)
    rates = np.array([schedule(n) for n in range(13)])
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert rates[12] == 0

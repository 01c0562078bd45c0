import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zigma_jax.interpolant import Interpolant

PATHS = ("linear", "gvp", "vp")
PREDICTIONS = ("velocity", "noise", "score")
WEIGHTINGS = (None, "velocity", "likelihood")
CASES = [(path, prediction) for path in PATHS for prediction in PREDICTIONS]


def model_fn(x, t):
    """The function the goldens were made with."""
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.tanh(0.7 * x + t) - 0.3 * x


# --- against the original ---


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_matches_the_original_in_float64(golden, x64, path, prediction):
    x0, x1, t = (jnp.asarray(golden[k], jnp.float64) for k in ("x0", "x1", f"{path}/t"))
    # the original's sigma has lost six digits at the end of vp
    check = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    for weighting in WEIGHTINGS:
        loss = Interpolant(path, prediction, weighting).loss_at(model_fn, x1, x0, t)
        check(loss, golden[f"f64/{path}/{prediction}/loss/{weighting or 'none'}"])
    ip = Interpolant(path, prediction)
    x_t = jnp.asarray(golden[f"f64/{path}/xt"])
    for name in ("drift", "score"):
        ours = getattr(ip, name)(model_fn, x_t, t)
        check(ours, golden[f"f64/{path}/{prediction}/{name}"])


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_float32_agrees_to_float32(golden, path, prediction):
    x0, x1, t = golden["x0"], golden["x1"], golden[f"{path}/t"]  # numpy arrays are as good
    for weighting in WEIGHTINGS:
        loss = Interpolant(path, prediction, weighting).loss_at(model_fn, x1, x0, t)
        assert loss.shape == (len(t),)
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, golden[f"f64/{path}/{prediction}/loss/{weighting or 'none'}"], rtol=1e-5)
    ip = Interpolant(path, prediction)
    x_t = golden[f"f64/{path}/xt"].astype(np.float32)
    for name in ("drift", "score"):
        expected = golden[f"f64/{path}/{prediction}/{name}"]
        ours = getattr(ip, name)(model_fn, x_t, t)
        # relative to the sample: an element is a difference of terms of the sample's magnitude
        scale = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
        np.testing.assert_allclose(ours / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_a_prediction_of_data_is_one_of_velocity(x64, path):
    """The same fields, and the same loss but near the data, where its weight is held back."""
    by_data, by_velocity = Interpolant(path, "data"), Interpolant(path)

    def data_fn(x, t):
        c = by_data.coefficients(t, x.ndim)
        return (c.sigma * model_fn(x, t) - c.d_sigma * x) / c.wronskian

    rng = np.random.default_rng(0)
    x1, x0 = (jnp.asarray(rng.standard_normal((9, 4, 4, 2))) for _ in range(2))
    t = jnp.linspace(0.02, 0.9, 9)
    for found, expected in zip(by_data.fields(data_fn, x1, t), by_velocity.fields(model_fn, x1, t), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8)
    inside = by_data.coefficients(t).sigma > 0.05
    losses = (ip.loss_at(fn, x1, x0, t) for ip, fn in ((by_data, data_fn), (by_velocity, model_fn)))
    found, expected = (np.asarray(loss)[inside] for loss in losses)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert len(found) >= 5
    end = jnp.full(9, 1 - 1e-6)
    weight = by_data.coefficients(end).wronskian / 0.05
    np.testing.assert_allclose(by_data.loss_at(lambda x, t: x1 + 0.01, x1, x0, end), (0.01 * weight) ** 2, rtol=1e-6)
    assert by_data.interval("sample") == (0.0, 1 - 1e-3)


def test_intervals_match_the_original(golden):
    for key, expected in golden.items():
        if "/interval/" not in key:
            continue
        path, prediction, _, use, *rest = key.split("/")
        ip = Interpolant(path, prediction)
        if use == "train":
            interval = ip.interval("train")
        elif use == "ode":
            interval = ip.interval("sample")
        elif use == "sde":
            interval = ip.interval("sde", diffusion=rest[0], last_step_size=float(rest[1]))
        else:
            continue  # the original's reversed interval is not the mirror of what it samples over
        if use == "sde" and prediction == "velocity" and path != "vp" and rest[0] == "sbdm":
            assert expected[0] == 0  # where that diffusion is infinite
            expected = (1e-3, expected[1])
        np.testing.assert_allclose(interval, expected, rtol=0, atol=1e-12, err_msg=key)


# --- consistency ---


@pytest.mark.parametrize("path", PATHS)
def test_predictions_are_readings_of_one_field(x64, path):
    """For Gaussian data N(m, s^2) velocity, noise and score are known; each gives the other two."""
    m, s = 0.7, 0.4
    x = jax.random.normal(jax.random.key(0), (5, 3), jnp.float64)
    t = jnp.array([0.05, 0.3, 0.5, 0.8, 0.95], jnp.float64)
    c = Interpolant(path).coefficients(t, 2)
    variance = c.alpha**2 * s**2 + c.sigma**2
    score = -(x - c.alpha * m) / variance
    noise = -c.sigma * score
    data = m + c.alpha * s**2 / variance * (x - c.alpha * m)
    exact = {"velocity": c.d_alpha * data + c.d_sigma * noise, "score": score, "noise": noise}
    for prediction in PREDICTIONS:
        # the default argument binds this turn's array
        fields = Interpolant(path, prediction).fields(lambda x, t, out=exact[prediction]: out, x, t)
        for name, expected in exact.items():
            np.testing.assert_allclose(getattr(fields, name), expected, rtol=1e-10, err_msg=name)


def test_bfloat16_data_reach_the_model_as_bfloat16_and_the_loss_stays_float32():
    seen = []

    def spy(x, t):
        seen.append((x.dtype, t.dtype))
        return x

    x1 = jax.random.normal(jax.random.key(0), (4, 1000), jnp.bfloat16)
    ip = Interpolant()
    loss = ip.loss(spy, x1, jax.random.key(1))
    assert seen == [(jnp.bfloat16, jnp.float32)]
    assert loss.dtype == jnp.float32
    x0, t = ip.sample_noise_and_time(jax.random.key(1), x1)
    assert x0.dtype == t.dtype == jnp.float32
    exact = ip.loss_at(lambda x, t: x, x1.astype(jnp.float32), x0, t)
    np.testing.assert_allclose(loss, exact, rtol=2**-9)  # x rounded to 8 bits, at random, over 1000 elements


def test_model_may_close_over_traced_parameters():
    ip = Interpolant()
    x1 = jnp.ones((3, 4))

    @functools.partial(jax.jit, static_argnums=0)
    def loss(ip, w):
        return ip.loss(lambda x, t: w * x, x1, jax.random.key(0)).mean()

    gradient = jax.grad(loss, argnums=1)(ip, jnp.float32(0.5))
    h = 1e-2  # the loss is quadratic in w: the central difference is exact
    np.testing.assert_allclose(
        gradient, (loss(ip, jnp.float32(0.5 + h)) - loss(ip, jnp.float32(0.5 - h))) / (2 * h), rtol=1e-4
    )
    assert hash(ip) == hash(Interpolant())


# --- randomness ---


def test_draws_do_not_depend_on_the_batch_split():
    ip = Interpolant(time_sampling="logit_normal")
    key, x1 = jax.random.key(3), jnp.zeros((8, 5, 2))
    x0, t = ip.sample_noise_and_time(key, x1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(8))
    for part_keys, part in (
        (key, slice(0, 4)),
        (keys[4:], slice(4, 8)),
        (jax.random.key_data(key), slice(0, 8)),
    ):
        part_x0, part_t = ip.sample_noise_and_time(part_keys, x1[part])
        np.testing.assert_array_equal(part_x0, x0[part])
        np.testing.assert_array_equal(part_t, t[part])
    assert len(np.unique(x0)) == x0.size
    assert len(np.unique(t)) == t.size


def test_draws_do_not_depend_on_the_number_of_devices():
    ip = Interpolant()
    draw = jax.jit(lambda key, x1: ip.sample_noise_and_time(key, x1))
    x1 = jnp.zeros((16, 6))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x1, NamedSharding(mesh, PartitionSpec("data")))
    for one, eight in zip(draw(jax.random.key(0), x1), draw(jax.random.key(0), sharded), strict=True):
        np.testing.assert_array_equal(one, eight)


@pytest.mark.parametrize(("path", "prediction"), [("linear", "velocity"), ("linear", "noise"), ("vp", "noise")])
def test_distribution_of_noise_and_time(path, prediction):
    ip = Interpolant(path, prediction)
    n = 4000
    x0, t = ip.sample_noise_and_time(jax.random.key(0), jnp.zeros((n, 4)))
    t0, t1 = ip.interval("train")
    assert t0 <= t.min()
    assert t.max() <= t1
    five_sigma = 5 / np.sqrt(12 * n)
    np.testing.assert_allclose(t.mean(), 0.5, atol=five_sigma)
    np.testing.assert_allclose(np.quantile(t, [0.25, 0.75]), [0.25, 0.75], atol=2 * five_sigma)
    np.testing.assert_allclose(x0.mean(), 0, atol=5 / np.sqrt(4 * n))
    np.testing.assert_allclose(x0.var(), 1, atol=5 * np.sqrt(2 / (4 * n)))
    correlation = np.corrcoef(np.c_[x0, t].T) - np.eye(5)
    assert np.abs(correlation).max() < 5 / np.sqrt(n)


def test_logit_normal_time():
    ip = Interpolant(time_sampling="logit_normal", logit_mean=0.5, logit_std=0.8)
    n = 4000
    _, t = ip.sample_noise_and_time(jax.random.key(0), jnp.zeros((n, 1)))
    logit = np.log(t / (1 - t))
    np.testing.assert_allclose(logit.mean(), 0.5, atol=5 * 0.8 / np.sqrt(n))
    np.testing.assert_allclose(logit.std(), 0.8, atol=5 * 0.8 / np.sqrt(2 * n))


# --- errors ---


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("path", "Linear", "path = 'Linear' is not one of: 'linear', 'gvp', 'vp'"),
        ("prediction", "x0", "prediction = 'x0' is not one of: 'velocity', 'noise', 'score'"),
        ("weighting", "none", "weighting = 'none' is not one of: None, 'velocity', 'likelihood'"),
        ("time_sampling", "beta", "time_sampling = 'beta' is not one of: 'uniform', 'logit_normal'"),
        ("logit_std", 0.0, "logit_std = 0.0 must be positive"),
        ("train_eps", 0.5, r"train_eps = 0.5 must lie in \[0, 0.5\)"),
        ("sample_eps", -1e-3, r"sample_eps = -0.001 must lie in \[0, 0.5\)"),
    ],
)
def test_bad_fields_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        Interpolant(**{field: value})


@pytest.mark.usefixtures("as_a_user")
def test_bad_calls_are_refused():
    ip, x, t = Interpolant(), jnp.zeros((2, 3)), jnp.zeros(2)
    with pytest.raises(ValueError, match=r"t has shape \(\); for x of shape \(2, 3\) it must be \(2,\)"):
        ip.drift(model_fn, x, jnp.zeros(()))
    with pytest.raises(ValueError, match=r"t has shape \(3,\)"):
        ip.loss_at(model_fn, x, x, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"model_fn returned shape \(2,\) for x of shape \(2, 3\)"):
        ip.loss_at(lambda x, t: t, x, x, t)
    with pytest.raises(ValueError, match=r"x1 has shape \(2, 3\) and x0 has shape \(2, 1\)"):
        ip.loss_at(model_fn, x, x[:, :1], t)
    with pytest.raises(ValueError, match="x1 has dtype int32; it must be floating point"):
        ip.loss(model_fn, x.astype(jnp.int32), jax.random.key(0))
    with pytest.raises(ValueError, match=r"keys of shape \(3,\); give one key, or one for each of the 2 samples"):
        ip.loss(model_fn, x, jax.random.split(jax.random.key(0), 3))
    with pytest.raises(ValueError, match="use = 'eval' is not one of: 'train', 'sample', 'sde'"):
        ip.interval("eval")

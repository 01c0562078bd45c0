import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zigma_jax.interpolant import Interpolant, sample_ode

PATHS = ("linear", "gvp", "vp")
PREDICTIONS = ("velocity", "noise", "score")
CASES = [(path, prediction) for path in PATHS for prediction in PREDICTIONS]


def model_fn(x, t):
    """The function the goldens were made with."""
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.tanh(0.7 * x + t) - 0.3 * x


def gaussian_score(ip, mean, std):
    """The exact score of data N(mean, std^2)."""

    def score(x, t):
        c = ip.coefficients(t, x.ndim)
        return -(x - c.alpha * mean) / (c.alpha**2 * std**2 + c.sigma**2)

    return score


def gaussian_flow(ip, z, mean, std, t0, t1):
    """The exact end of that field's ODE: a Gaussian sample keeps its standardised value."""

    def moments(t):
        c = ip.coefficients(jnp.array([t], z.dtype))
        return c.alpha[0] * mean, jnp.sqrt(c.alpha[0] ** 2 * std**2 + c.sigma[0] ** 2)

    (m0, s0), (m1, s1) = moments(t0), moments(t1)
    return m1 + s1 * (z - m0) / s0


# --- against the original ---


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_endpoints_match_the_original(golden, path, prediction):
    ip = Interpolant(path, prediction)
    z = jnp.asarray(golden["x0"])
    run = jax.jit(
        lambda z: [sample_ode(ip, model_fn, z, method=m, steps=20) for m in ("euler", "heun", "dopri5")]
    )
    euler, heun, dopri5 = run(z)
    prefix = f"f64/{path}/{prediction}/ode"
    scale = np.abs(golden[f"{prefix}/euler"]).max()  # up to hundreds: this field is not a trained one
    np.testing.assert_allclose(euler, golden[f"{prefix}/euler"], rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(heun, golden[f"{prefix}/heun2"], rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(dopri5, golden[f"{prefix}/converged"], rtol=2e-3, atol=2e-3)
    if f"{prefix}/dopri5" in golden:
        np.testing.assert_allclose(dopri5, golden[f"{prefix}/dopri5"], rtol=2e-3, atol=2e-3)


# --- against closed forms ---


@pytest.mark.parametrize(("path", "prediction"), [("linear", "score"), ("gvp", "noise"), ("vp", "score")])
def test_gaussian_data_are_reproduced(path, prediction):
    ip = Interpolant(path, prediction)
    score = gaussian_score(ip, 0.5, 0.3)

    def exact_model(x, t):
        return score(x, t) if prediction == "score" else -ip.coefficients(t, x.ndim).sigma * score(x, t)

    z = jax.random.normal(jax.random.key(0), (2000, 2))
    sample = jax.jit(lambda z: sample_ode(ip, exact_model, z))(z)
    expected = gaussian_flow(ip, z, 0.5, 0.3, *ip.interval())
    np.testing.assert_allclose(sample, expected, atol=2e-3)
    # the last eps of the path is left out: that, and five times the sampling error
    np.testing.assert_allclose(sample.mean(0), 0.5, atol=5 * 0.3 / np.sqrt(2000) + 5e-3)
    np.testing.assert_allclose(np.cov(sample.T), 0.09 * np.eye(2), atol=5 * 0.09 * np.sqrt(2 / 2000) + 5e-3)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(x64, method, order):
    ip = Interpolant("gvp")
    score = gaussian_score(ip, 0.5, 0.3)

    def velocity(x, t):
        c = ip.coefficients(t, x.ndim)
        data = (x + c.sigma**2 * score(x, t)) / c.alpha
        # at t = 0 nothing of the data is seen: their mean
        return c.d_alpha * jnp.where(c.alpha == 0, 0.5, data) - c.d_sigma * c.sigma * score(x, t)

    z = jax.random.normal(jax.random.key(0), (16, 3), jnp.float64)
    exact = gaussian_flow(ip, z, 0.5, 0.3, 0.0, 1.0)
    errors = [
        jnp.sqrt(jnp.mean((sample_ode(ip, velocity, z, method=method, steps=n + 1) - exact) ** 2))
        for n in (100, 200)
    ]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.1


@pytest.mark.parametrize(("method", "tolerance"), [("heun", 1e-3), ("dopri5", 1e-3)])
@pytest.mark.parametrize("path", PATHS)
def test_reverse_encodes_what_sampling_decodes(path, method, tolerance):
    ip = Interpolant(path)

    @jax.jit
    def there_and_back(z):
        x = sample_ode(ip, model_fn, z, method=method, steps=100)
        return x, sample_ode(ip, model_fn, x, method=method, steps=100, reverse=True)

    z = jax.random.normal(jax.random.key(0), (4, 6))
    x, back = there_and_back(z)
    assert np.abs(x - z).max() > 0.3
    np.testing.assert_allclose(back, z, atol=5 * tolerance)


# --- batches, devices, tracing ---


def labelled(w, labels, x, t):
    """A model with parameters and with labels of the batch, whose stiffness depends on the label."""
    return jnp.tanh(x @ w) * labels[:, None] + t[:, None]


def problem(batch):
    w = jax.random.normal(jax.random.key(0), (6, 6))
    return w, jnp.arange(float(batch)), jax.random.normal(jax.random.key(1), (batch, 6))


@functools.partial(jax.jit, static_argnums=0)
def sample_labelled(method, w, labels, z):
    return sample_ode(Interpolant(), lambda x, t: labelled(w, labels, x, t), z, method=method, steps=8)


@pytest.mark.parametrize("method", ["euler", "heun", "dopri5"])
def test_a_sample_does_not_depend_on_its_batch_or_device(method):
    w, labels, z = problem(8)
    whole = sample_labelled(method, w, labels, z)
    # one matrix product of another shape may round differently, and dopri5 carry that through tens of steps
    np.testing.assert_allclose(sample_labelled(method, w, labels[2:5], z[2:5]), whole[2:5], atol=1e-5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    on_eight = jax.device_put((labels, z), NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(sample_labelled(method, w, *on_eight), whole, atol=1e-5)
    if method == "dopri5":
        eager = sample_ode(Interpolant(), lambda x, t: labelled(w, labels, x, t), z)
        np.testing.assert_allclose(eager, whole, atol=1e-5)


def test_number_of_model_evaluations():
    calls = []

    def counted(x, t):
        assert x.shape == (3, 6)  # the whole batch at once, adaptive or not
        jax.debug.callback(lambda: calls.append(1))
        return -x

    z = jnp.ones((3, 6))
    for method, expected in (("euler", 9), ("heun", 18)):
        calls.clear()
        jax.block_until_ready(sample_ode(Interpolant(), counted, z, method=method, steps=10))
        jax.effects_barrier()
        assert len(calls) == expected
    calls.clear()
    jax.block_until_ready(sample_ode(Interpolant(), counted, z))
    jax.effects_barrier()
    assert (len(calls) - 1) % 6 == 0 or (len(calls) - 3) % 6 == 0  # 6 a step, after choosing the first one
    assert len(calls) < 70


def test_gradient_of_a_fixed_grid():
    def end(w, z):
        return sample_ode(Interpolant(), lambda x, t: w * x, z, method="euler", steps=11).sum()

    # x1 = (1 + w / 10)^10 z
    gradient = jax.jit(jax.grad(end))(0.5, jnp.ones((1, 1)))
    np.testing.assert_allclose(gradient, 1.05**9, rtol=1e-5)


def test_bfloat16_noise_gives_the_model_bfloat16_and_a_float32_state():
    def spy(x, t):
        assert x.dtype == jnp.bfloat16
        assert t.dtype == jnp.float32
        return -x

    for method in ("heun", "dopri5"):
        x = sample_ode(Interpolant(), spy, jnp.ones((2, 3), jnp.bfloat16), method=method)
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, np.exp(-1), rtol=2**-8)


def test_a_field_that_blows_up_gives_nan_for_that_sample_alone():
    z = jnp.array([[0.5], [3.0]])  # dx/dt = x^2 from 3 is infinite at t = 1/3
    x = jax.jit(lambda z: sample_ode(Interpolant(), lambda x, t: x**2, z))(z)
    np.testing.assert_allclose(x[0], 1.0, rtol=2e-3)
    assert np.isnan(x[1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "rk4"}, "method = 'rk4' is not one of: 'euler', 'heun', 'dopri5'"),
        ({"steps": 0}, "steps = 0 time points; there must be at least 2"),
        ({"method": "euler", "steps": 1}, "steps = 1 time points; there must be at least 2"),
        ({"rtol": 0.0}, "rtol = 0.0 must be positive"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_ode(Interpolant(), model_fn, jnp.zeros((2, 3)), **arguments)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interpolant.gaussian import MEAN, STD, exact_model
from zigma_jax.errors import ConfigError
from zigma_jax.interpolant import Interpolant, bits_per_dim, likelihood, log_likelihood


def model_fn(x, t):
    """The function the goldens were made with."""
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.tanh(0.7 * x + t) - 0.3 * x


@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
@pytest.mark.parametrize("path", ["linear", "gvp"])  # on vp the original starts at t = 1 and stops short of 0
def test_matches_the_original_given_its_probe(golden, x64, monkeypatch, path, prediction):
    probe = jnp.asarray(golden["probe"], jnp.float64)
    monkeypatch.setattr(likelihood, "_probes", lambda keys, x, count: probe[None])
    x = jnp.asarray(golden["x1"], jnp.float64)
    with jax.disable_jit():  # faster than compiling
        ours = log_likelihood(Interpolant(path, prediction), model_fn, x, jax.random.key(0), method="euler", steps=20)
    np.testing.assert_allclose(ours, golden[f"f64/{path}/{prediction}/likelihood/euler/logp"], rtol=1e-10)


@pytest.mark.parametrize(("path", "prediction", "method"), [("linear", "velocity", "dopri5"), ("vp", "score", "heun")])
def test_closed_form_of_a_gaussian(path, prediction, method):
    """The Jacobian is diagonal, so that one probe of +-1 gives its trace exactly."""
    ip = Interpolant(path, prediction)
    x = MEAN + STD * jax.random.normal(jax.random.key(0), (6, 5))
    ours = jax.jit(lambda x: log_likelihood(ip, exact_model(ip), x, jax.random.key(1), method, 100))(x)
    # of the density at the data end of the interval, which eps makes a little wider than the data's
    c = ip.coefficients(jnp.array([ip.interval()[1]]))
    mean, variance = c.alpha * MEAN, c.alpha**2 * STD**2 + c.sigma**2
    exact = -0.5 * jnp.sum((x - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance), axis=1)
    # the other end is taken to be N(0, 1), which is short by eps or exp(-5) of the data
    np.testing.assert_allclose(ours, exact, atol=0.02 if path == "vp" else 0.01)
    np.testing.assert_allclose(bits_per_dim(ours, 5), -ours / 5 / np.log(2), rtol=1e-6)


def test_hutchinson_is_unbiased_and_sharpens_with_probes():
    """A linear field with an off-diagonal Jacobian: x1 = expm(A) x0, log det = trace A."""
    A = jnp.array([[0.3, 0.8], [0.1, -0.2]])
    ip, x, probes = Interpolant(), jnp.tile(jnp.array([[0.4, -0.7]]), (300, 1)), 4

    @jax.jit
    def run(key):
        return log_likelihood(ip, lambda x, t: x @ A.T, x, key, method="heun", steps=20, probes=probes)

    z = x[0] @ jax.scipy.linalg.expm(-A).T
    exact = -0.5 * jnp.sum(z**2 + jnp.log(2 * jnp.pi)) - jnp.trace(A)
    error = run(jax.random.key(0)) - exact
    # a probe estimates trace A +- 0.9, the sum of the off-diagonal elements, either sign as likely
    spread = 0.9 / np.sqrt(probes)
    np.testing.assert_allclose(error.mean(), 0, atol=5 * spread / np.sqrt(300))
    np.testing.assert_allclose(error.std(), spread, rtol=0.25)
    np.testing.assert_allclose(np.unique(np.round(error, 2)), [-0.9, -0.45, 0, 0.45, 0.9], atol=0.011)


def test_probes_below_one_are_refused():
    with pytest.raises(ValueError, match="probes = 0 must be at least 1"):
        log_likelihood(Interpolant(), model_fn, jnp.zeros((2, 3)), jax.random.key(0), probes=0)


def test_the_exact_divergence_is_the_trace_of_the_jacobian():
    """Of a field that mixes all elements: against a dense Jacobian, and whatever the key."""
    A = jnp.array([[0.3, 0.8, 0.0], [0.1, -0.2, 0.5], [-0.4, 0.2, 0.1]])
    ip, x = Interpolant(), jax.random.normal(jax.random.key(0), (4, 3))

    def field(x, t):
        return jnp.tanh(x @ A.T) * t[:, None]

    def run(key, x):
        return log_likelihood(ip, field, x, key, method="euler", steps=9, divergence="exact")

    found = jax.jit(run)(jax.random.key(0), x)
    np.testing.assert_array_equal(found, jax.jit(run)(jax.random.key(1), x))
    z, total = x, jnp.zeros(4)
    for t in np.linspace(1, 0, 9)[:-1]:
        t_ = jnp.full(1, t)
        jacobians = jax.vmap(lambda row, t_=t_: jax.jacfwd(lambda r: field(r[None], t_)[0])(row))(z)
        total = total - jnp.trace(jacobians, axis1=1, axis2=2) / 8
        z = z - field(z, jnp.full(4, t)) / 8
    expected = -0.5 * jnp.sum(z**2 + jnp.log(2 * jnp.pi), axis=1) + total
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ConfigError, match="divergence = 'none' is not one of"):
        log_likelihood(ip, field, x, jax.random.key(0), divergence="none")

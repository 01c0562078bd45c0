import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interpolant.gaussian import MEAN, STD, exact_model
from zigma_jax.interpolant import Interpolant, sample_sde, sde

PATHS = ("linear", "gvp", "vp")
CASES = [(path, prediction) for path in PATHS for prediction in ("velocity", "noise", "score")]


def model_fn(x, t):
    """The function the goldens were made with."""
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.tanh(0.7 * x + t) - 0.3 * x


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_matches_the_original_given_its_noise(golden, x64, monkeypatch, path, prediction):
    noise = jnp.asarray(golden["sde_noise"], jnp.float64)
    monkeypatch.setattr(sde, "_noise", lambda keys, index, x: noise[index])
    z = jnp.asarray(golden["x0"], jnp.float64)
    prefix = f"f64/{path}/{prediction}/sde/"
    cases = [key for key in golden if key.startswith(prefix)]
    assert len(cases) >= 10
    for case in cases:
        method, diffusion, last_step = case.removeprefix(prefix).split("/")
        with jax.disable_jit():  # faster than compiling
            ours = sample_sde(
                Interpolant(path, prediction),
                model_fn,
                z,
                jax.random.key(0),
                method=method,
                steps=6,
                diffusion=diffusion,
                diffusion_norm=0.7,
                last_step=None if last_step == "none" else last_step,
            )
        scale = np.abs(golden[case]).max()
        np.testing.assert_allclose(ours, golden[case], rtol=0, atol=1e-9 * scale, err_msg=case)


@pytest.mark.parametrize(
    ("path", "prediction", "method", "diffusion", "last_step"),
    [
        ("linear", "velocity", "heun", "sigma", None),
        ("gvp", "noise", "euler", "linear", "euler"),
        ("vp", "score", "euler", "sbdm", "tweedie"),
        ("linear", "score", "heun", "constant", "tweedie"),
    ],
)
def test_gaussian_data_are_reproduced(path, prediction, method, diffusion, last_step):
    ip, n = Interpolant(path, prediction), 2000
    z, key = jax.random.normal(jax.random.key(0), (n, 2)), jax.random.key(1)

    @jax.jit
    def run(z, key):
        return sample_sde(
            ip,
            exact_model(ip),
            z,
            key,
            method=method,
            diffusion=diffusion,
            last_step=last_step,
            last_step_size=0.01,
        )

    sample = run(z, key)
    # five times the sampling error, and 250 steps' weak error
    np.testing.assert_allclose(sample.mean(0), MEAN, atol=5 * STD / np.sqrt(n) + 0.01)
    np.testing.assert_allclose(np.cov(sample.T), STD**2 * np.eye(2), atol=5 * STD**2 * np.sqrt(2 / n) + 0.01)
    # the noise is new: a sample has forgotten part of where it started, unlike with the ODE
    assert abs(np.corrcoef(sample[:, 0], z[:, 0])[0, 1]) < 0.95


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_weak_order_of_the_mean(x64, monkeypatch, method, order):
    """A linear field: the mean over the noise is the run without noise."""
    monkeypatch.setattr(sde, "_noise", lambda keys, index, x: jnp.zeros_like(x))
    ip, z = Interpolant(), jnp.ones((1, 1), jnp.float64)

    def mean(steps):
        return sample_sde(ip, exact_model(ip), z, jax.random.key(0), method, steps + 1, last_step_size=0.1)[0, 0]

    coarse, middle, fine = mean(200), mean(400), mean(800)
    assert abs(np.log2((coarse - middle) / (middle - fine)) - order) < 0.1


def test_noise_belongs_to_the_sample():
    ip, key, z = Interpolant(), jax.random.key(0), jnp.ones((6, 2))
    run = jax.jit(lambda key, z: sample_sde(ip, model_fn, z, key, steps=10))
    whole = run(key, z)
    np.testing.assert_allclose(run(key, z[:2]), whole[:2], atol=1e-6)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(6))
    np.testing.assert_allclose(run(keys[3:], z[3:]), whole[3:], atol=1e-6)
    assert len(np.unique(np.asarray(whole))) == whole.size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "milstein"}, "method = 'milstein' is not one of: 'euler', 'heun'"),
        ({"diffusion": "SBDM"}, "diffusion = 'SBDM' is not one of: 'constant', 'sbdm', 'sigma'"),
        ({"last_step": "Mean"}, "last_step = 'Mean' is not one of: None, 'mean', 'tweedie', 'euler'"),
        ({"last_step_size": 0.0}, r"last_step_size = 0.0 must lie in \(0, 1\)"),
        ({"steps": 1}, "steps = 1 time points"),
        (
            {"method": "heun", "diffusion": "constant", "last_step": None},
            "infinite for diffusion = 'constant'",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_sde(Interpolant(), model_fn, jnp.zeros((2, 3)), jax.random.key(0), **arguments)

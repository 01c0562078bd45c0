import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interpolant.gaussian import MEAN, STD, exact_model
from zigma_jax.interpolant import Interpolant, sample_sde, sde, time_points

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


# Along a linear field a sample is a linear function of its start and of each step's noise, so a batch in which sample
# i starts from or meets one of them alone gives mean and variance of the samples without sampling error.


def moments_of_scheme(monkeypatch, ip, steps, shift=1.0, **settings):
    """Mean and variance at the end, of samples that start with the exact ones, and (t0, t1)."""
    times = time_points(ip.interval("sde", diffusion=settings["diffusion"]), steps, shift)
    ends = jnp.array([times[0], times[-1]])
    mean, variance = moments(ip, ends)
    z = jnp.zeros((steps + 1, 1)).at[1].set(1.0)
    pulses = jnp.eye(steps - 1, steps + 1, k=2, dtype=z.dtype)[..., None]
    monkeypatch.setattr(sde, "_noise", lambda keys, index, x: pulses[index])
    run = jax.jit(lambda z: sample_sde(ip, exact_model(ip), z, jax.random.key(0), steps=steps, shift=shift, **settings))
    x = run(z)[:, 0]
    offset, gains = x[0], x[1:] - x[0]
    return offset + gains[0] * mean[0], gains[0] ** 2 * variance[0] + jnp.sum(gains[1:] ** 2), mean[1], variance[1]


def moments(ip, t):
    c = ip.coefficients(t)
    return c.alpha * MEAN, c.alpha**2 * STD**2 + c.sigma**2


@pytest.mark.parametrize("diffusion", sde.DIFFUSIONS)
@pytest.mark.parametrize(("method", "order_of_mean", "path"), [("euler", 1, "vp"), ("heun", 2, "gvp")])
def test_weak_order(x64, monkeypatch, method, order_of_mean, path, diffusion):
    """Mean and variance converge to those of the path, at the promised order: whatever the diffusion."""
    ip = Interpolant(path, "noise", sample_eps=0.1)
    errors = []
    for steps in (200, 400):
        mean, variance, exact_mean, exact_variance = moments_of_scheme(
            monkeypatch, ip, steps + 1, method=method, diffusion=diffusion, last_step=None
        )
        errors.append((abs(mean - exact_mean), abs(variance - exact_variance)))
    np.testing.assert_allclose(errors[1], 0, atol=0.01)
    np.testing.assert_allclose(np.log2(errors[0][0] / errors[1][0]), order_of_mean, atol=0.15)
    np.testing.assert_allclose(np.log2(errors[0][1] / errors[1][1]), 1, atol=0.15)


def test_shifted_and_custom_grids(x64, monkeypatch):
    ip = Interpolant("linear", "noise", sample_eps=0.01)
    settings = {"method": "euler", "diffusion": "sigma", "last_step": None}
    mean, variance, exact_mean, exact_variance = moments_of_scheme(monkeypatch, ip, 400, shift=0.5, **settings)
    np.testing.assert_allclose([mean, variance], [exact_mean, exact_variance], atol=0.01)

    def run(steps, **more):
        return sample_sde(ip, model_fn, jnp.ones((401, 1)), jax.random.key(0), steps=steps, **settings | more)

    evenly = np.linspace(0.01, 0.99, 400)
    np.testing.assert_allclose(run(400), run(list(evenly)), atol=1e-12)
    with pytest.raises(
        ValueError, match=r"steps end at 0.9: with a last_step they must end at 1 - last_step_size = 0.96"
    ):
        run([0.1, 0.9], last_step="mean")


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


@pytest.mark.parametrize("prediction", ["noise", "score"])
@pytest.mark.parametrize("size", [0.9995, 0.999, 1e-9])
def test_a_last_step_that_leaves_no_interval_is_refused(prediction, size):
    """It would run time backwards, or divide by a sigma of zero."""
    with pytest.raises(ValueError, match=r"last_step_size = .*it must be in \[1e-06, 0.999\)"):
        sample_sde(
            Interpolant(prediction=prediction), model_fn, jnp.zeros((2, 3)), jax.random.key(0), last_step_size=size
        )


@pytest.mark.parametrize("norm", [-1.0, float("nan"), float("inf")])
def test_diffusion_norm_is_finite(norm):
    with pytest.raises(ValueError, match="diffusion_norm"):
        sample_sde(Interpolant(), model_fn, jnp.zeros((2, 3)), jax.random.key(0), diffusion_norm=norm)


def test_samplers_stay_away_from_singular_ends():
    for ip in (Interpolant(prediction="noise", sample_eps=0.0), Interpolant("vp", sample_eps=1e-9)):
        with pytest.raises(ValueError, match=r"sample_eps = .*infinite at an end"):
            ip.interval("sample")
    assert Interpolant(sample_eps=0.0).interval("sample") == (0.0, 1.0)

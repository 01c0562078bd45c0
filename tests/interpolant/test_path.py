import jax.numpy as jnp
import numpy as np
import pytest

import zigma_jax.interpolant.path as path_module
from zigma_jax.interpolant import Interpolant

PATHS = ("linear", "gvp", "vp")


@pytest.mark.parametrize("path", PATHS)
def test_coefficients_match_the_original_in_float64(golden, x64, path):
    t = jnp.asarray(golden[f"{path}/t"], jnp.float64)
    c = Interpolant(path).coefficients(t)
    for name, ours in {
        "alpha": c.alpha,
        "d_alpha": c.d_alpha,
        "sigma": c.sigma,
        "d_sigma": c.d_sigma,
        "drift_var": c.diffusivity,
    }.items():
        # 1e-10: at t = 0.99999 the original's 1 - exp(...) has lost six of float64's sixteen digits
        np.testing.assert_allclose(ours, golden[f"f64/{path}/{name}"], rtol=1e-10, atol=1e-15, err_msg=name)
    x_t = golden[f"f64/{path}/xt"]
    growth = c.growth.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(-growth * x_t, golden[f"f64/{path}/drift_mean"], rtol=1e-10)


@pytest.mark.parametrize("path", PATHS)
def test_float32_keeps_its_relative_accuracy_up_to_both_ends(x64, path):
    t = np.asarray([1e-3, 0.01, 0.3, 0.5, 0.9, 0.999, 1 - 1e-5], np.float32)
    single, double = (path_module.PATHS[path](jnp.asarray(t, dtype)) for dtype in (jnp.float32, jnp.float64))
    for name, a, b in zip(single._fields, single, double, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=2e-6, err_msg=name)  # some sixteen roundings of 6e-8, and exp(-5)


@pytest.mark.parametrize("path", PATHS)
def test_derived_coefficients_are_what_their_names_say(x64, path):
    t = jnp.linspace(0.05, 0.95, 7, dtype=jnp.float64)
    c = path_module.PATHS[path](t)
    h = 1e-6
    after, before = path_module.PATHS[path](t + h), path_module.PATHS[path](t - h)
    np.testing.assert_allclose(c.d_alpha, (after.alpha - before.alpha) / (2 * h), rtol=1e-7)
    np.testing.assert_allclose(c.d_sigma, (after.sigma - before.sigma) / (2 * h), rtol=1e-7)
    np.testing.assert_allclose(c.growth, c.d_alpha / c.alpha, rtol=1e-12)
    np.testing.assert_allclose(c.wronskian, c.d_alpha * c.sigma - c.alpha * c.d_sigma, rtol=1e-12)
    np.testing.assert_allclose(c.diffusivity, c.sigma * c.wronskian / c.alpha, rtol=1e-12)


def test_ends_of_the_paths():
    ends = jnp.array([0.0, 1.0])
    for path in ("linear", "gvp"):
        c = path_module.PATHS[path](ends)
        np.testing.assert_allclose(c.alpha, [0, 1], atol=1e-7)
        np.testing.assert_array_equal(c.sigma, [1, 0])
    c = path_module.PATHS["vp"](ends)
    np.testing.assert_array_equal(c.sigma[1], 0)
    np.testing.assert_allclose(c.alpha, [np.exp(-5.025), 1], rtol=1e-6)

"""Data N(mean, std^2), elementwise: every field of every path is known in closed form."""

import jax.numpy as jnp

from zigma_jax.interpolant import Interpolant

MEAN, STD = 0.5, 0.3


def exact_model(ip: Interpolant):
    """The perfect model of what ip predicts."""

    def model_fn(x, t):
        c = ip.coefficients(t, x.ndim)
        standardised = (x - c.alpha * MEAN) / (c.alpha**2 * STD**2 + c.sigma**2)
        noise = c.sigma * standardised
        if ip.prediction == "score":
            return -standardised
        if ip.prediction == "noise":
            return noise
        if ip.prediction == "data":
            return MEAN + c.alpha * STD**2 * standardised
        return c.d_alpha * (MEAN + c.alpha * STD**2 * standardised) + c.d_sigma * noise

    return model_fn


def exact_flow(ip: Interpolant, z, t0: float, t1: float):
    """Where the exact ODE carries z from t0 to t1: a sample keeps its standardised value."""

    def moments(t):
        c = ip.coefficients(jnp.array([t], z.dtype))
        return c.alpha[0] * MEAN, jnp.sqrt(c.alpha[0] ** 2 * STD**2 + c.sigma[0] ** 2)

    (mean0, std0), (mean1, std1) = moments(t0), moments(t1)
    return mean1 + std1 * (z - mean0) / std0

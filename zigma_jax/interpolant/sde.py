"""Sampling by the SDE that has the same marginals as the probability-flow ODE (SiT, arXiv 2401.08740, eq.
4-5).

    dx = (velocity + w score) dt + sqrt(2 w) dW

for any diffusion w(t) >= 0. The forms of w are those of the original (`ICPlan.compute_diffusion`).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zigma_jax.errors import ConfigError
from zigma_jax.interpolant.draws import Keys, fold_in_each, normal_like, per_sample_keys
from zigma_jax.interpolant.grid import Steps, time_points
from zigma_jax.interpolant.objective import Floats, Interpolant, ModelFn, at_least_float32, check_choice
from zigma_jax.interpolant.path import Coefficients

METHODS = ("euler", "heun")
DIFFUSIONS = ("constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing")
LAST_STEPS = (None, "mean", "tweedie", "euler")


def sample_sde(
    ip: Interpolant,
    model_fn: ModelFn,
    z: Float[Floats, "b *shape"],
    key: Keys,
    method: str = "euler",
    steps: Steps = 250,
    diffusion: str = "sigma",
    diffusion_norm: float | int = 1.0,
    last_step: str | None = "mean",
    last_step_size: float | int = 0.04,
    shift: float | int = 1.0,
) -> Float[Array, "b *shape"]:
    """Carry noise z to data along the SDE: `Sampler.sample_sde` of the original. Pure; see `sample_ode` for
    jit.

    Args:
        z: (b, ...) standard normal. The state is float32 (float64 for float64 z); model_fn sees z's dtype.
        key: one PRNG key, or one a sample (b,); sample i's noise depends on its own key alone.
        method: "euler" (Euler-Maruyama, 1 model evaluation a step) | "heun" (the step's noise first, then the
            trapezoidal rule; 2 evaluations).
        steps: number of time points over `ip.interval("sde", ...)`: steps - 1 steps of the method, then the
            last one. Or the times themselves, increasing, within that interval and, if there is a last_step, up
            to its end.
        diffusion, diffusion_norm: form of w and its factor n: "constant" n; "sbdm" n times the path's
            diffusivity (the reverse diffusion of Song et al.); "sigma" n sigma; "linear" n (1 - t);
            "decreasing" (n cos(pi t) + 1)^2 / 4; "increasing-decreasing" n sin(pi t)^2.
        last_step: what follows at t1 = 1 - last_step_size: "mean" a step of the SDE without noise; "euler" a
            step of the ODE; "tweedie" the expected data given x; None nothing (t1 is then the end of the
            interval).
        shift: above 1 more of the time points lie near noise, see `time_points`.

    "euler" is of weak order 1. "heun" is of order 2 in the mean but of order 1 in the variance, because it adds
    a step's noise at the step's start.

    Returns:
        (b, ...) samples, float32.

    Raises:
        ConfigError: unknown method, diffusion or last_step; fewer than 2 steps, times that don't increase or
            leave the interval; a last_step without 0 < last_step_size < 1, or with one that leaves nothing of
            the interval; a diffusion_norm that is negative or not finite; settings that would evaluate an
            infinite term at t = 0 or t = 1.
    """
    check_choice("method", method, METHODS)
    check_choice("diffusion", diffusion, DIFFUSIONS)
    check_choice("last_step", last_step, LAST_STEPS)
    if last_step is None:
        last_step_size = 0.0
    elif not 0 < last_step_size < 1:
        raise ConfigError(f"last_step_size = {last_step_size!r} must lie in (0, 1) with a last_step")
    if not 0 <= diffusion_norm < math.inf:
        raise ConfigError(f"diffusion_norm = {diffusion_norm!r} must be finite and not negative")
    interval = ip.interval("sde", diffusion=diffusion, last_step_size=last_step_size)
    times = time_points(interval, steps, shift)
    if last_step is not None and times[-1] < interval[1] - 1e-6:
        raise ConfigError(
            f"steps end at {times[-1]:g}: with a last_step they must end at 1 - last_step_size = {interval[1]:g}"
        )
    if times[-1] == 1 and method == "heun" and diffusion not in ("sigma", "sbdm"):
        raise ConfigError(
            f"heun without a last_step evaluates w score at t = 1, infinite for diffusion = {diffusion!r}; "
            "use a last_step, or diffusion 'sigma' or 'sbdm'"
        )

    dtype = jnp.asarray(z).dtype
    z = at_least_float32("z", z)
    keys = per_sample_keys(key, z.shape[0])
    ts, lengths = (jnp.asarray(a, z.dtype) for a in (times, np.diff(times)))

    def fields_at(x, t):
        return ip.fields(model_fn, x.astype(dtype), jnp.full(x.shape[:1], t))

    def drift(x, t):
        fields = fields_at(x, t)
        c = _coefficients(ip, t)
        return fields.velocity - _diffusion_over_sigma(diffusion, diffusion_norm, t, c) * fields.noise

    def body(x, step):
        t, h, index = step
        w = _diffusion(diffusion, diffusion_norm, t, _coefficients(ip, t))
        noise = jnp.sqrt(2 * w * h) * _noise(keys, index, x)
        if method == "euler":
            return x + h * drift(x, t) + noise, None
        x = x + noise
        k1 = drift(x, t)
        k2 = drift(x + h * k1, t + h)
        return x + h / 2 * (k1 + k2), None

    x, _ = jax.lax.scan(body, z, (ts[:-1], lengths, jnp.arange(len(lengths))))
    if last_step == "mean":
        return x + last_step_size * drift(x, ts[-1])
    if last_step == "euler":
        return x + last_step_size * fields_at(x, ts[-1]).velocity
    if last_step == "tweedie":
        c = _coefficients(ip, ts[-1])
        return (x - c.sigma * fields_at(x, ts[-1]).noise) / c.alpha
    return x


def _coefficients(ip: Interpolant, t: Float[Array, ""]) -> Coefficients:
    """The path at one time, scalars."""
    return jax.tree.map(lambda c: c[0], ip.coefficients(t[None]))


def _noise(keys, index: Array, x: Array) -> Array:
    return normal_like(fold_in_each(keys, index), x)


def _diffusion(form: str, norm: float, t: Array, c: Coefficients) -> Array:
    """w(t)."""
    if form == "constant":
        return jnp.full_like(t, norm)
    if form == "sbdm":
        return norm * c.diffusivity
    if form == "sigma":
        return norm * c.sigma
    if form == "linear":
        return norm * (1 - t)
    if form == "decreasing":
        return 0.25 * jnp.square(norm * jnp.cos(jnp.pi * t) + 1)
    return norm * jnp.square(jnp.sin(jnp.pi * t))


def _diffusion_over_sigma(form: str, norm: float, t: Array, c: Coefficients) -> Array:
    """w / sigma, finite at t = 1 where w vanishes as sigma does: w score = -(w / sigma) noise."""
    if form == "sigma":
        return jnp.full_like(t, norm)
    if form == "sbdm":
        return norm * c.wronskian / c.alpha
    return _diffusion(form, norm, t, c) / c.sigma

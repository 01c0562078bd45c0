"""Sampling by the probability-flow ODE: fixed grids by `lax.scan`, adaptive steps by diffrax."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zigma_jax.errors import ConfigError
from zigma_jax.interpolant.grid import Steps, time_points
from zigma_jax.interpolant.objective import Floats, Interpolant, ModelFn, at_least_float32, check_choice

Field = Callable[[Any, Array], Any]
"""field(y, t): y a pytree of (b, ...), t (b,) -> dy/dt, the same pytree."""


def sample_ode(
    ip: Interpolant,
    model_fn: ModelFn,
    z: Float[Floats, "b *shape"],
    method: str = "dopri5",
    steps: Steps = 50,
    atol: float = 1e-6,
    rtol: float = 1e-3,
    reverse: bool = False,
    shift: float | int = 1.0,
) -> Float[Array, "b *shape"]:
    """Carry noise z along the model's velocity to data: `Sampler.sample_ode` of the original.

    A pure function of z and of whatever model_fn closes over, to be jitted with the parameters as arguments:

        sample = jax.jit(lambda params, z: sample_ode(ip, lambda x, t: apply(params, x, t), z))

    Called outside jit it works too, but compiles anew at every call.

    Args:
        z: (b, ...) standard normal. The state is float32 (float64 for float64 z); model_fn sees z's dtype.
        method: on a fixed grid "euler" (order 1, 1 model evaluation a step), "midpoint" (2, 2), "heun" (2, 2:
            the explicit trapezoidal rule; torchdiffeq's "heun2"), "rk4" (4, 4: the classical one, not
            torchdiffeq's 3/8 rule); adaptive, by diffrax, "bosh3" (order 3, 3 evaluations a step), "dopri5",
            "tsit5" (5, 6) and "dopri8" (8, 13), at least ten steps each. Gradients pass through the fixed
            grids only.
        steps: of the fixed grid: the number of its time points, that is one more than its steps, over
            `ip.interval()`; or the times themselves, increasing, within that interval. An adaptive method
            chooses its own.
        atol, rtol: of an adaptive method: a step is accepted if the root mean square over one sample of
            error / (atol + rtol |x|) is below 1.
        reverse: from data (t1) back to noise (t0), over the same grid: encode. (The original evaluates the model
            at 1 - t there, which is not the inverse of sampling; here it is.)
        shift: of a fixed grid: above 1 more of its points lie near noise, see `time_points`.

    Every sample takes adaptive steps of its own, so its batch mates cannot change it (torchdiffeq has one
    step size for the whole batch). The batch is still evaluated at once, until its slowest sample is done. A
    sample whose field blows up is returned as nan.

    To watch the progress of a long call, let model_fn report itself: `jax.debug.callback(bar.update)`.

    Returns:
        (b, ...) samples at the end of the grid or interval, float32.

    Raises:
        ConfigError: unknown method; fewer than 2 steps, times that don't increase or leave the interval; times
            or a shift for an adaptive method; tolerances that are not positive and finite.
    """
    times = ode_times(method, ip.interval("sample"), steps, shift)
    dtype = jnp.asarray(z).dtype
    return integrate(
        lambda x, t: ip.drift(model_fn, x.astype(dtype), t),
        at_least_float32("z", z),
        times[::-1] if reverse else times,
        method=method,
        atol=atol,
        rtol=rtol,
    )


def ode_times(
    method: str, interval: tuple[float, float], steps: Steps, shift: float | int = 1.0
) -> Float[np.ndarray, " n"]:
    """`time_points` for a method of `sample_ode`; of an adaptive one only the ends count. Raises ConfigError."""
    check_choice("method", method, METHODS)
    if method in ADAPTIVE and (shift != 1 or not isinstance(steps, int)):
        raise ConfigError(
            f"method = {method!r} chooses its own steps: shift must be 1 and steps a number, or the method one of: "
            f"{', '.join(map(repr, _FIXED))}"
        )
    return time_points(interval, steps, shift)


def integrate(
    field: Field,
    y0: PyTree[Float[Array, "b ..."]],
    times: Float[np.ndarray, " n"],
    *,
    method: str,
    atol: float,
    rtol: float,
) -> PyTree[Float[Array, "b ..."]]:
    """y(times[-1]) of dy/dt = field(y, t) from y(times[0]) = y0, a pytree of float32 arrays (b, ...)."""
    if not (0 < atol < math.inf and 0 < rtol < math.inf):
        raise ConfigError(f"atol = {atol!r} and rtol = {rtol!r} must be positive and finite")
    if method in _FIXED:
        return _fixed_grid(_FIXED[method], field, y0, times)
    # diffrax is imported here, so that a model and its loss do without it
    from zigma_jax.interpolant.adaptive import solve_adaptively

    return solve_adaptively(ADAPTIVE[method], field, y0, float(times[0]), float(times[-1]), atol=atol, rtol=rtol)


# --- fixed grids ---


def _euler(field: Field, y, t: Array, h: Array):
    return _axpy(h, field(y, t), y)


def _midpoint(field: Field, y, t: Array, h: Array):
    k1 = field(y, t)
    return _axpy(h, field(_axpy(h / 2, k1, y), t + h / 2), y)


def _heun(field: Field, y, t: Array, h: Array):
    k1 = field(y, t)
    k2 = field(_axpy(h, k1, y), t + h)
    return _axpy(h / 2, _axpy(1.0, k1, k2), y)


def _rk4(field: Field, y, t: Array, h: Array):
    k1 = field(y, t)
    k2 = field(_axpy(h / 2, k1, y), t + h / 2)
    k3 = field(_axpy(h / 2, k2, y), t + h / 2)
    k4 = field(_axpy(h, k3, y), t + h)
    return _axpy(h / 6, _axpy(2.0, _axpy(1.0, k2, k3), _axpy(1.0, k1, k4)), y)


_FIXED = {"euler": _euler, "midpoint": _midpoint, "heun": _heun, "rk4": _rk4}
ADAPTIVE = {"bosh3": "Bosh3", "dopri5": "Dopri5", "tsit5": "Tsit5", "dopri8": "Dopri8"}  # diffrax's names
METHODS = (*_FIXED, *ADAPTIVE)


def _axpy(a, x, y):
    return jax.tree.map(lambda x, y: a * x + y, x, y)


def _fixed_grid(step, field: Field, y0, times: Float[np.ndarray, " n"]):
    leaf = jax.tree.leaves(y0)[0]
    starts, lengths = (jnp.asarray(a, leaf.dtype) for a in (times[:-1], np.diff(times)))

    def at_scalar_time(y, t):
        return field(y, jnp.full(leaf.shape[:1], t))

    def body(y, t_and_h):
        return step(at_scalar_time, y, *t_and_h), None

    return jax.lax.scan(body, y0, (starts, lengths))[0]

"""Sampling by the probability-flow ODE: fixed grids by `lax.scan`, adaptive steps by diffrax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from zigma_jax.interpolant.objective import Floats, Interpolant, ModelFn, at_least_float32, check_choice

Field = Callable[[Any, Array], Any]
"""field(y, t): y a pytree of (b, ...), t (b,) -> dy/dt, the same pytree."""


def sample_ode(
    ip: Interpolant,
    model_fn: ModelFn,
    z: Float[Floats, "b *shape"],
    method: str = "dopri5",
    steps: int = 50,
    atol: float = 1e-6,
    rtol: float = 1e-3,
    reverse: bool = False,
) -> Float[Array, "b *shape"]:
    """Carry noise z along the model's velocity to data: `Sampler.sample_ode` of the original.

    A pure function of z and of whatever model_fn closes over, to be jitted with the parameters as arguments:

        sample = jax.jit(lambda params, z: sample_ode(ip, lambda x, t: apply(params, x, t), z))

    Called outside jit it works too, but compiles anew at every call.

    Args:
        z: (b, ...) standard normal. The state is float32 (float64 for float64 z); model_fn sees z's dtype.
        method: "euler" | "heun" (the explicit trapezoidal rule; torchdiffeq's "heun2") on a fixed grid, at 1
            or 2 model evaluations a step; "dopri5": adaptive, 6 evaluations a step, at least ten steps.
            Gradients pass through the fixed grids only.
        steps: number of time points of the fixed grid, that is one more than its steps: linspace(t0, t1,
            steps) over `ip.interval()`. An adaptive method chooses its own.
        atol, rtol: of the adaptive method: a step is accepted if the root mean square over one sample of
            error / (atol + rtol |x|) is below 1.
        reverse: from data (t1) back to noise (t0). (The original evaluates the model at 1 - t there, which is
            not the inverse of sampling; here it is.)

    Every sample takes adaptive steps of its own, so its batch mates cannot change it (torchdiffeq has one
    step size for the whole batch). The batch is still evaluated at once, until its slowest sample is done. A
    sample whose field blows up is returned as nan.

    To watch the progress of a long call, let model_fn report itself: `jax.debug.callback(bar.update)`.

    Returns:
        (b, ...) samples at the end of the interval, float32.

    Raises:
        ValueError: unknown method; steps below 2; tolerances that are not positive.
    """
    t0, t1 = ip.interval("sample")
    if reverse:
        t0, t1 = t1, t0
    dtype = jnp.asarray(z).dtype
    return integrate(
        lambda x, t: ip.drift(model_fn, x.astype(dtype), t),
        at_least_float32("z", z),
        t0,
        t1,
        method=method,
        steps=steps,
        atol=atol,
        rtol=rtol,
    )


def integrate(
    field: Field,
    y0: PyTree[Float[Array, "b ..."]],
    t0: float,
    t1: float,
    *,
    method: str,
    steps: int,
    atol: float,
    rtol: float,
) -> PyTree[Float[Array, "b ..."]]:
    """y(t1) of dy/dt = field(y, t) from y(t0) = y0, a pytree of float32 arrays (b, ...); see `sample_ode`."""
    check_choice("method", method, METHODS)
    if steps < 2:
        raise ValueError(f"steps = {steps!r} time points; there must be at least 2, the two ends")
    if not (atol > 0 and rtol > 0):
        raise ValueError(f"atol = {atol!r} and rtol = {rtol!r} must be positive")
    if method in _FIXED:
        return _fixed_grid(_FIXED[method], field, y0, t0, t1, steps)
    # diffrax is imported here, so that a model and its loss do without it
    from zigma_jax.interpolant.adaptive import dopri5

    return dopri5(field, y0, t0, t1, atol=atol, rtol=rtol)


# --- fixed grids ---


def _euler(field: Field, y, t: Array, h: Array):
    return _axpy(h, field(y, t), y)


def _heun(field: Field, y, t: Array, h: Array):
    k1 = field(y, t)
    k2 = field(_axpy(h, k1, y), t + h)
    return _axpy(h / 2, _axpy(1.0, k1, k2), y)


_FIXED = {"euler": _euler, "heun": _heun}
METHODS = (*_FIXED, "dopri5")


def _axpy(a, x, y):
    return jax.tree.map(lambda x, y: a * x + y, x, y)


def _fixed_grid(step, field: Field, y0, t0: float, t1: float, steps: int):
    leaf = jax.tree.leaves(y0)[0]
    ts = jnp.linspace(t0, t1, steps, dtype=leaf.dtype)

    def at_scalar_time(y, t):
        return field(y, jnp.full(leaf.shape[:1], t))

    def body(y, t_and_h):
        return step(at_scalar_time, y, *t_and_h), None

    return jax.lax.scan(body, y0, (ts[:-1], jnp.diff(ts)))[0]

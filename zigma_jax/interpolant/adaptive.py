"""Adaptive Runge-Kutta methods by diffrax: each sample has its own steps, the field still sees the whole batch."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

_MAX_STEPS = 4096  # a usual solve takes tens
# No step is longer than a tenth of the interval. Where a field is smooth, a longer one now and then meets a
# zero of the error estimate: on Gaussian data, at rtol 1e-3, the 3 to 9 steps taken without this bound ended
# up to 4e-2 off, the 11 or 12 with it at most 2e-4.
_LONGEST_STEP = 0.1
_SHORTEST_STEP = 1e-6  # below it float32 time hardly moves: the field has blown up


def solve_adaptively(
    solver_name: str,
    field: Callable[[Any, Array], Any],
    y0: PyTree[Float[Array, "b ..."]],
    t0: float,
    t1: float,
    *,
    atol: float,
    rtol: float,
) -> PyTree[Float[Array, "b ..."]]:
    """y(t1) of dy/dt = field(y, t) from y(t0) = y0; nan for a sample whose field blows up on the way.

    solver_name: of an explicit solver of diffrax with an error estimate, "Dopri5" for example.

    Step control is torchdiffeq's (safety 0.9, growth within 0.2 to 10, root mean square of the error against
    atol + rtol max(|y|, |y_next|), Hairer's first step), but sample by sample, where torchdiffeq has one step
    size for the whole batch and so lets batch mates change a sample. No step is longer than a tenth of the
    interval. Forward only: reverse-mode differentiation is not supported.
    """
    solver = getattr(diffrax, solver_name)()
    one_sample_field, closed_over = _one_sample(field, y0, t0)
    length = abs(t1 - t0)
    controller = diffrax.PIDController(
        rtol,
        atol,
        norm=_rms,
        dtmax=_LONGEST_STEP * length,
        dtmin=_SHORTEST_STEP * length,
        force_dtmin=False,
    )

    def solve(y, first_step):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, closed_over: one_sample_field(closed_over, y, t)),
            solver,
            t0=t0,
            t1=t1,
            dt0=first_step,
            y0=y,
            args=closed_over,
            stepsize_controller=controller,
            max_steps=_MAX_STEPS,
            throw=False,
        )
        done = solution.result == diffrax.RESULTS.successful
        return jax.tree.map(lambda ys: jnp.where(done, ys[0], jnp.nan), solution.ys)

    sign = 1 if t1 > t0 else -1
    return jax.vmap(solve)(y0, _first_step(field, y0, t0, sign, solver.order(None), atol, rtol))


def _one_sample(field, y0, t0: float):
    """field as a function of one sample, which under vmap becomes one call of field on the whole batch.

    field may use things that have a batch axis of their own (labels, say), so it cannot be called for one
    sample: vmap must hand it the batch as it is. Arrays that it closes over are returned beside it, because
    the rule of a custom_vmap runs where they are out of scope.
    """
    converted = eqx.filter_closure_convert(field, y0, _times(t0, y0))
    closed_over, static = eqx.partition(converted, eqx.is_array)

    @jax.custom_batching.custom_vmap
    def one_sample_field(closed_over, y, t):
        del closed_over, t
        return jax.tree.map(jnp.zeros_like, y)  # tells the shapes; never runs, for y is always batched

    @one_sample_field.def_vmap
    def _(axis_size, in_batched, closed_over, y, t):
        t = t if in_batched[2] else jnp.full((axis_size,), t)
        dy = eqx.combine(closed_over, static)(y, t)
        return dy, jax.tree.map(lambda _: True, dy)

    return one_sample_field, closed_over


def _first_step(field, y0, t0: float, sign: int, order: int, atol: float, rtol: float) -> Float[Array, "b"]:
    """Length of each sample's first step (Hairer, Norsett & Wanner, Solving ODEs I, II.4), with its sign.

    diffrax's own choice is 0.01 whatever the field (0.7.2: its test for an ODE misses the wrapped term),
    which is ten times t itself where the noise and score predictions start.
    """
    scale = jax.tree.map(lambda y: atol + rtol * jnp.abs(y), y0)

    def norm(v):
        return jax.vmap(_rms)(jax.tree.map(jnp.divide, v, scale))

    def trial_step(f0):
        d0, d1 = norm(y0), norm(f0)
        return jnp.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)

    def body(y_and_t, _):
        f = field(*y_and_t)
        h = sign * trial_step(f)
        y = jax.tree.map(lambda y, f: y + h.reshape(-1, *[1] * (y.ndim - 1)) * f, y0, f)
        return (y, t0 + h), f

    # a scan of length two, so that the field is compiled once
    _, fs = jax.lax.scan(body, (y0, _times(t0, y0)), length=2)
    f0, f1 = (jax.tree.map(lambda f, i=i: f[i], fs) for i in (0, 1))
    h0, d1 = trial_step(f0), norm(f0)
    curvature = jnp.maximum(d1, norm(jax.tree.map(jnp.subtract, f1, f0)) / h0)
    h1 = jnp.where(curvature <= 1e-15, jnp.maximum(1e-6, 1e-3 * h0), (0.01 / curvature) ** (1 / order))
    h = jnp.minimum(100 * h0, h1)
    return sign * jnp.where(jnp.isfinite(h), h, 0.0)  # of a field of nan; the controller refuses the step


def _rms(y) -> Float[Array, ""]:
    """Root mean square of all elements; infinite for nan, so that such an error is too large for any step."""
    rms = jnp.sqrt(jnp.mean(jnp.square(jax.flatten_util.ravel_pytree(y)[0])))
    return jnp.where(jnp.isnan(rms), jnp.inf, rms)


def _times(t: float, y) -> Float[Array, "b"]:
    leaf = jax.tree.leaves(y)[0]
    return jnp.full(leaf.shape[:1], t, leaf.dtype)

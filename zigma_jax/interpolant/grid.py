"""Time points of the samplers with fixed steps: uniform, shifted towards noise or data, or given one by one."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from zigma_jax.errors import ConfigError

Steps = int | Sequence[float | int] | np.ndarray | Array
"""How many time points, both ends counted, or the time points themselves, increasing."""

_ROUNDING = 1e-6  # a time given in float32 may be that far beyond an end


def time_points(interval: tuple[float, float], steps: Steps, shift: float | int = 1.0) -> Float[np.ndarray, " n"]:
    """Increasing times in `interval` = (t0, t1), float64.

    A number of steps is so many points t0 + (t1 - t0) p / (s - (s - 1) p), p = 0 … 1 evenly, for a shift s:
    evenly spaced for s = 1, denser towards noise (t = 0) for s > 1 and towards data for s < 1. It is the
    timestep shift of Stable Diffusion 3 (arXiv 2403.03206, eq. 23), s u / (1 + (s - 1) u), written for this
    library's t = 1 - u; a shift of sqrt(m / n) there goes from n tokens to m.

    Given times are taken as they are; they may cover a part of the interval.

    Raises:
        ConfigError: fewer than two points, times that don't increase or leave the interval, a shift that is
            outside [0.001, 1000], a shift of given times.
    """
    t0, t1 = interval
    if not 0 < shift < math.inf:
        raise ConfigError(f"shift = {shift!r} must be positive and finite; 1 spaces times evenly")
    if not 1e-3 <= shift <= 1e3:
        raise ConfigError(f"shift = {shift!r} must be in [0.001, 1000]: beyond, all points lie at one end")
    if isinstance(steps, int):
        if steps < 2:
            raise ConfigError(f"steps = {steps!r} time points; there must be at least 2, the two ends")
        if shift == 1:
            return np.linspace(t0, t1, steps)
        p = np.linspace(0.0, 1.0, steps)
        return t0 + (t1 - t0) * p / (shift - (shift - 1) * p)
    if shift != 1:
        raise ConfigError(f"shift = {shift!r} moves evenly spaced times; of given times (steps) it must be 1")
    times = np.asarray(steps, np.float64)
    if times.ndim != 1 or times.size < 2:
        raise ConfigError(f"steps of shape {times.shape}: give a number, or at least 2 times in a row")
    if not (np.diff(times) > 0).all():
        i = int(np.argmin(np.diff(times) > 0))
        raise ConfigError(
            f"steps[{i}] = {times[i]:g} is followed by {times[i + 1]:g}: times must increase strictly (from noise at "
            "0 to data at 1, also for the way back)"
        )
    if times[0] < t0 - _ROUNDING or times[-1] > t1 + _ROUNDING:
        raise ConfigError(
            f"steps go from {times[0]:g} to {times[-1]:g}: they must lie in [{t0:g}, {t1:g}], the interval of this "
            "path, prediction and sampler"
        )
    return np.clip(times, t0, t1)

import math

import numpy as np
import pytest

from zigma_jax.interpolant import time_points


def test_evenly_spaced_and_given():
    np.testing.assert_array_equal(time_points((0.0, 1.0), 5), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(time_points((0.0, 1.0), [0, 0.1, 1]), [0, 0.1, 1])
    # the ends of an interval in float32 are the ends
    times = time_points((1e-3, 1 - 1e-3), np.array([1e-3, 0.5, 0.9990001], np.float32))
    assert times[-1] == 1 - 1e-3


@pytest.mark.parametrize("shift", [3.0, 0.5])
def test_shift_is_that_of_stable_diffusion_3(shift):
    u = 1 - time_points((0.0, 1.0), 11)  # its time, noise at 1
    expected = 1 - shift * u / (1 + (shift - 1) * u)
    times = time_points((0.0, 1.0), 11, shift)
    np.testing.assert_allclose(times, expected, atol=1e-15)
    assert (np.median(times) < 0.5) == (shift > 1)  # more points near noise
    within = time_points((0.2, 0.7), 11, shift)
    np.testing.assert_allclose(within, 0.2 + 0.5 * expected, atol=1e-15)
    assert (within[0], within[-1]) == (0.2, 0.7)


@pytest.mark.parametrize(
    ("steps", "shift", "message"),
    [
        (0, 1.0, "steps = 0 time points; there must be at least 2"),
        (1, 1.0, "steps = 1 time points"),
        ([0.5], 1.0, r"steps of shape \(1,\): give a number, or at least 2 times"),
        ([0.0, 0.5, 0.4, 1.0], 1.0, r"steps\[1\] = 0.5 is followed by 0.4: times must increase strictly"),
        ([0.0, 0.0, 1.0], 1.0, r"steps\[0\] = 0 is followed by 0"),
        ([1.0, 0.5, 0.0], 1.0, r"steps\[0\] = 1 is followed by 0.5: .*also for the way back"),
        ([0.0, math.nan, 1.0], 1.0, r"steps\[0\] = 0 is followed by nan"),
        ([-0.1, 1.0], 1.0, r"steps go from -0.1 to 1: they must lie in \[0, 1\]"),
        ([0.0, 1.0], 2.0, "shift = 2.0 moves evenly spaced times"),
        (5, 0.0, "shift = 0.0 must be positive"),
        (5, math.inf, "shift = inf must be positive and finite"),
    ],
)
def test_bad_grids_are_refused(steps, shift, message):
    with pytest.raises(ValueError, match=message):
        time_points((0.0, 1.0), steps, shift)

"""Streaming statistics: the same bits for any split, and float64's digits."""

import numpy as np
import pytest

from zigma_jax.metrics import Moments
from zigma_jax.metrics.accumulate import CHUNK, Sample

ROWS = np.random.default_rng(0).normal(size=(2 * CHUNK + 77, 5)).astype(np.float32)


def moments(rows, batch):
    accumulator = Moments()
    for first in range(0, len(rows), batch):
        accumulator.add(rows[first : first + batch])
    return accumulator.gaussian()


@pytest.mark.parametrize("batch", [1, 7, 64, CHUNK, CHUNK + 1])
def test_batch_split_changes_no_bit(batch):
    whole, split = moments(ROWS, len(ROWS)), moments(ROWS, batch)
    assert split.count == len(ROWS)
    np.testing.assert_array_equal(split.mean, whole.mean)
    np.testing.assert_array_equal(split.covariance, whole.covariance)


def test_mean_far_from_zero_costs_no_digits():
    """Exactly representable rows: the moments of the same rows near zero are the truth."""
    near = np.round(ROWS * 256) / 256
    far = near + np.float32(8192)
    assert (far - np.float32(8192) == near).all()
    expected = np.cov(near.astype(np.float64), rowvar=False)
    gaussian = moments(far, 64)
    np.testing.assert_allclose(gaussian.covariance, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(gaussian.mean - 8192, near.mean(0, dtype=np.float64), atol=1e-11)


def test_reading_midway_changes_nothing():
    accumulator = Moments()
    for first in range(0, len(ROWS), 100):
        accumulator.add(ROWS[first : first + 100])
        if first:
            accumulator.gaussian()
    np.testing.assert_array_equal(accumulator.gaussian().covariance, moments(ROWS, 64).covariance)


def test_bad_rows():
    accumulator = Moments()
    with pytest.raises(ValueError, match="0 samples"):
        accumulator.gaussian()
    accumulator.add(ROWS[:9])
    with pytest.raises(ValueError, match="sample 11 are not finite"):
        accumulator.add(np.array([[0.0] * 5, [0.0] * 5, [0, np.inf, 0, 0, 0]], np.float32))
    with pytest.raises(ValueError, match="3 dimensions after some of 5"):
        accumulator.add(ROWS[:9, :3])


def sample(size, batch, n=1000):
    kept = Sample(size)
    for first in range(0, n, batch):
        numbers = np.arange(first, min(first + batch, n), dtype=np.float32)[:, None]
        kept.add({"a": numbers, "b": -numbers})
    return kept.rows()


def test_kept_rows():
    """All of few; of many, the same random ones for any split, in order, from everywhere."""
    assert (sample(1000, 64)["a"][:, 0] == np.arange(1000)).all()
    for batch in (1, 7, 333):
        np.testing.assert_array_equal(sample(100, batch)["a"], sample(100, 1000)["a"])
    kept = sample(100, 64)
    assert kept["a"].shape == (100, 1)
    assert (np.diff(kept["a"][:, 0]) > 0).all()
    assert (kept["b"] == -kept["a"]).all()
    assert kept["a"].mean() == pytest.approx(499.5, abs=4 * 288.7 / np.sqrt(100))
    assert len(sample(0, 64)["a"]) == 0

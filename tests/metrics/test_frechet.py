"""The Fréchet distance against its closed forms."""

import numpy as np
import pytest

from zigma_jax.metrics import Gaussian, frechet_distance


def gaussian(mean, covariance):
    return Gaussian(np.asarray(mean, np.float64), np.asarray(covariance, np.float64), 100)


def test_commuting_covariances():
    """|m|² + Σ (√a − √b)² where both are diagonal, zeros included."""
    a, b = gaussian([0, 0, 1], np.diag([4.0, 1.0, 0.0])), gaussian([3, 0, 1], np.diag([1.0, 9.0, 0.0]))
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_rotation_and_order_do_not_matter():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 6)), rng.normal(size=(70, 6)) @ rng.normal(size=(6, 6)) + 1
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    distance = frechet_distance(Gaussian.of(x), Gaussian.of(y))
    assert distance > 1
    assert frechet_distance(Gaussian.of(y), Gaussian.of(x)) == pytest.approx(distance)
    assert frechet_distance(Gaussian.of(x @ rotation), Gaussian.of(y @ rotation)) == pytest.approx(distance)


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2"):
        Gaussian.of(np.zeros((1, 3)))

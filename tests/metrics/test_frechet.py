"""The Fréchet distance against its closed forms."""

import numpy as np
import pytest

from zigma_jax.errors import DataError
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


def test_fewer_samples_than_dimensions():
    """The closed form by singular values of the samples themselves; zero of a set to itself, to float64's digits."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 200)) * np.exp(rng.normal(size=200)), rng.normal(size=(30, 200))
    a, b = Gaussian.of(x), Gaussian.of(y)
    x_centred, y_centred = (x - x.mean(0)) / np.sqrt(19), (y - y.mean(0)) / np.sqrt(29)
    overlap = np.linalg.svd(x_centred @ y_centred.T, compute_uv=False).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.square(x_centred).sum() + np.square(y_centred).sum()
    assert frechet_distance(a, b) == pytest.approx(expected - 2 * overlap, rel=1e-11)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12 * np.trace(a.covariance))


def test_steep_spectra():
    """Σ (√a − √b)² where the covariances commute: also what is 1e-14 of the largest eigenvalue counts."""
    thin = gaussian([0, 0], np.diag([1, 2e-8]))
    assert 0 <= frechet_distance(thin, thin) < 1e-15
    assert frechet_distance(thin, gaussian([0, 0], np.diag([1, 0]))) == pytest.approx(2e-8, rel=1e-7)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))
    for exponent in (1.0, 2.0, 4.0, 6.0):
        values = np.arange(1.0, 61) ** -exponent
        covariance = rotation * values @ rotation.T
        a, b = gaussian(np.zeros(60), covariance), gaussian(np.zeros(60), 1.01 * covariance)
        expected = values.sum() * (np.sqrt(1.01) - 1) ** 2
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
        assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)
        assert frechet_distance(a, a) < 1e-12 * values.sum()


def test_not_finite():
    with pytest.raises(DataError, match="finite"):
        frechet_distance(gaussian([0, np.nan], np.eye(2)), gaussian([0, 0], np.eye(2)))


def test_other_dimensions():
    with pytest.raises(ValueError, match="3 and of 2 dimensions"):
        frechet_distance(gaussian([0, 0, 0], np.eye(3)), gaussian([0, 0], np.eye(2)))


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2"):
        Gaussian.of(np.zeros((1, 3)))

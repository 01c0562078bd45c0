"""The same features, the same numbers as torch-fidelity, prdc and scikit-learn (tests/goldens/README.md)."""

import numpy as np
import pytest

from tests.golden import GOLDENS
from zigma_jax.metrics import (
    Gaussian,
    frechet_distance,
    inception_score,
    kernel_distance,
    prdc,
    unbiased_kernel_distance,
)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "metrics.npz") as file:
        return dict(file)


def test_frechet_distance(golden):
    distance = frechet_distance(Gaussian.of(golden["fake"]), Gaussian.of(golden["real"]))
    assert distance == pytest.approx(golden["fd"], rel=1e-10)


def test_kernel_distance(golden):
    """The references are in float64; ours multiplies in float32."""
    mean, std = kernel_distance(golden["fake"], golden["real"], subsets=20, subset_size=100)
    assert mean == pytest.approx(golden["kid_mean"], rel=1e-5)
    assert std == pytest.approx(golden["kid_std"], rel=1e-5)
    full = unbiased_kernel_distance(golden["fake"], golden["real"])
    assert full == pytest.approx(golden["kid_full"], rel=1e-5)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_coverage(golden, k):
    ours = prdc(golden["fake"], golden["real"], k=k, density_k=k)
    assert ours == pytest.approx({name: float(golden[f"prdc/{k}/{name}"]) for name in ours}, rel=1e-12)
    for name in ("precision", "recall"):  # torch-fidelity's are float32
        assert ours[name] == pytest.approx(golden[f"prc/{k}/{name}"], rel=1e-6)


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score(golden, splits):
    mean, std = inception_score(golden["logits"], splits)
    assert mean == pytest.approx(golden[f"is/{splits}/mean"], rel=1e-12)
    assert std == pytest.approx(golden[f"is/{splits}/std"], rel=1e-12, abs=1e-12)

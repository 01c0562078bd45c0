"""The Fréchet distance between two sets of features, each taken for a Gaussian (arXiv 1706.08500, equation 6)."""

import dataclasses

import numpy as np
from jaxtyping import Float

from zigma_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Mean (k,) and covariance (k, k) of features, float64, and how many samples they came from (None: not known)."""

    mean: Float[np.ndarray, " k"]
    covariance: Float[np.ndarray, "k k"]
    count: int | None

    @staticmethod
    def of(features: Float[np.ndarray, "n k"]) -> "Gaussian":
        """The unbiased estimate. Raises ValueError for fewer than two samples."""
        if len(features) < 2:
            raise DataError(f"{len(features)} samples: a covariance needs at least 2")
        features = features.astype(np.float64)
        return Gaussian(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)), len(features))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean difference|² + tr(A + B − 2 (A B)^½), in the square of the features' unit; zero for equal Gaussians.

    With A = H Hᵀ and B = K Kᵀ, the trace of (A B)^½ is the sum of the singular values of Kᵀ H. The roots of the
    eigenvalues of Hᵀ B H are the same numbers, but every one below 1e-8 of the largest would be lost in rounding:
    the features of a network have a steep spectrum, and thousands of such values make up its end.

    Raises:
        DataError: the features differ in dimension, or a mean or covariance is not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise DataError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions are not of the same network")
    for gaussian in a, b:
        if not (np.isfinite(gaussian.mean).all() and np.isfinite(gaussian.covariance).all()):
            raise DataError("the mean and covariance of features must be finite")
    half_a, half_b = _root(a.covariance), _root(b.covariance)
    overlap = np.linalg.svd(half_b.T @ half_a, compute_uv=False).sum()
    # The traces are those of the roots, so that what rounding takes from an overlap it takes from them too.
    spread = np.square(half_a).sum() + np.square(half_b).sum() - 2 * overlap
    return float(np.square(a.mean - b.mean).sum() + max(spread, 0.0))


def _root(covariance: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    """H with H Hᵀ = covariance, without what float64 cannot tell from zero.

    A root would make 1e-8 of an eigenvalue of 1e-16, once for every dimension that the samples don't span.
    """
    values, vectors = np.linalg.eigh(covariance)
    noise = len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors * np.sqrt(np.where(values > max(noise, 0), values, 0))

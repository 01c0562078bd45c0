"""The Fréchet distance between two sets of features, each taken for a Gaussian (arXiv 1706.08500, equation 6)."""

import dataclasses

import numpy as np
from jaxtyping import Float


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
            raise ValueError(f"{len(features)} samples: a covariance needs at least 2")
        features = features.astype(np.float64)
        return Gaussian(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)), len(features))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean difference|² + tr(A + B − 2 (A B)^½), in the square of the features' unit.

    (A B)^½ has the trace of (Hᵀ B H)^½ where A = H Hᵀ, which is symmetric: its eigenvalues are real and stable where
    the covariances are singular.

    Raises:
        ValueError: the features differ in dimension.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions are not of the same network")
    values, vectors = np.linalg.eigh(a.covariance)
    half = vectors * np.sqrt(_without_noise(values))
    overlap = np.sqrt(_without_noise(np.linalg.eigvalsh(half.T @ b.covariance @ half))).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return float(distance)


def _without_noise(eigenvalues: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Zero for what float64 cannot tell from zero, in ascending eigenvalues that are not negative.

    The root taken of it next would make 1e-8 of 1e-16, once for every dimension the samples don't span.
    """
    noise = len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues[-1]
    return np.where(eigenvalues > max(noise, 0), eigenvalues, 0)

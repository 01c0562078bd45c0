"""The Fréchet distance between two sets of features, each taken for a Gaussian (arXiv 1706.08500, equation 6)."""

import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Mean (k,) and covariance (k, k) of features, float64, and how many samples they came from."""

    mean: Float[np.ndarray, " k"]
    covariance: Float[np.ndarray, "k k"]
    count: int

    @staticmethod
    def of(features: Float[np.ndarray, "n k"]) -> "Gaussian":
        """The unbiased estimate. Raises ValueError for fewer than two samples."""
        if len(features) < 2:
            raise ValueError(f"{len(features)} samples: a covariance needs at least 2")
        features = features.astype(np.float64)
        return Gaussian(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)), len(features))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean difference|² + tr(A + B − 2 (A B)^½), in the square of the features' unit.

    (A B)^½ has the trace of (A^½ B A^½)^½, which is symmetric: its eigenvalues are real and stable where the
    covariances are singular.
    """
    root = _square_root(a.covariance)
    eigenvalues = np.linalg.eigvalsh(root @ b.covariance @ root)
    overlap = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return float(distance)


def _square_root(matrix: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T

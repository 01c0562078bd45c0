"""How close two sets of pictures are."""

from zigma_jax.metrics.frechet import Gaussian, frechet_distance

__all__ = ["Gaussian", "frechet_distance"]

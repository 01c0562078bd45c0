"""How far sampled pictures are from real ones, as the ablation measures it: the one place to change it."""

import numpy as np
from jaxtyping import Float, UInt8

from zigma_jax.ablation.config import CELLS
from zigma_jax.metrics import Gaussian

NAME = "FD-colour"
MEANING = f"Fréchet distance of mean colours of {CELLS} × {CELLS} parts, values in [-1, 1]"


def features(pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n k"]:
    """What the distance looks at: 192 colours of a picture, whose sides are multiples of 8."""
    n, h, w, c = pictures.shape
    parts = pictures.reshape(n, CELLS, h // CELLS, CELLS, w // CELLS, c)
    return parts.mean((2, 4), dtype=np.float32).reshape(n, -1) / 127.5 - 1


def statistics(pictures: UInt8[np.ndarray, "n h w 3"]) -> Gaussian:
    """Mean and covariance of the pictures' features, for `frechet_distance`."""
    return Gaussian.of(features(pictures))

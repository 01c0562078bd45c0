"""How far sampled pictures or clips are from real ones, as the ablation measures it."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from zigma_jax.ablation.config import CELLS
from zigma_jax.metrics import Gaussian, Moments
from zigma_jax.training.sampling import batches
from zigma_jax.training.sharding import batch_sharding, replicated

Statistics = Callable[[UInt8[np.ndarray, "n *size 3"]], Gaussian]
MEANING = {
    "colour": f"mean colours of {CELLS} × {CELLS} parts of a picture, values in [-1, 1]",
    "motion": f"mean colours of {CELLS} × {CELLS} parts of a clip and their mean changes from frame to frame",
    "effnet": "features of EfficientNet-Lite0, docs/networks.md",
    "transnetv2": "features of TransNet V2, docs/video.md",
}


def make_statistics(features: str, mesh: Mesh, batch: int) -> Statistics:
    """What makes mean and covariance of pictures' features, for `frechet_distance`.

    features: a name of `MEANING`. batch: pictures at a time in a network, a multiple of the mesh's devices.

    Raises:
        FileNotFoundError: the network's weights are not installed.
    """
    if features == "colour":
        return lambda pictures: Gaussian.of(mean_colours(pictures))
    if features == "motion":
        return lambda clips: Gaussian.of(colours_and_changes(clips))
    from zigma_jax.networks import load_network

    network = jax.device_put(load_network(features), replicated(mesh))

    def statistics(pictures: UInt8[np.ndarray, "n *size 3"]) -> Gaussian:
        moments = Moments()
        for indices, wanted in batches(len(pictures), batch):
            images = jax.device_put(pictures[indices % len(pictures)], batch_sharding(mesh))
            moments.add(np.asarray(network(images)["pool"])[:wanted])
        return moments.gaussian()

    return statistics


def mean_colours(pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n k"]:
    """192 colours of a picture whose sides are multiples of 8, in [-1, 1]."""
    return _parts(pictures).reshape(len(pictures), -1) / 127.5 - 1


def colours_and_changes(clips: UInt8[np.ndarray, "n f h w 3"]) -> Float[np.ndarray, "n k"]:
    """384 numbers of a clip whose sides are multiples of 8: `mean_colours` of it, averaged over its frames, and for
    each part and colour the mean absolute change of its mean from a frame to the next, both in units of `mean_colours`.

    A clip that stands still has no changes, so that it is far from every clip that moves.
    """
    parts = np.stack([_parts(clip) for clip in clips]) / 127.5 - 1
    changes = np.abs(np.diff(parts, axis=1))
    return np.concatenate([part.mean(1).reshape(len(clips), -1) for part in (parts, changes)], axis=1)


def _parts(pictures: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n a b c"]:
    n, h, w, c = pictures.shape
    parts = pictures.reshape(n, CELLS, h // CELLS, CELLS, w // CELLS, c)
    return parts.mean((2, 4), dtype=np.float32)

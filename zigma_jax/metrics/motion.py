"""How much videos move: a number that a picture that stands still cannot hide from.

Networks look at what frames show, and hardly notice when nothing moves. The change from each frame to the next is what
is measured here, in levels of 0 … 255, the mean over the pixels; two sets are compared by the distribution of all these
changes. Read it beside the same number of copies that stand still, and of copies whose frames are shuffled.
"""

import numpy as np
from jaxtyping import Float, UInt8

from zigma_jax.errors import DataError

_QUANTILES = 1000
_SEED = 0x5EED


def changes(videos: UInt8[np.ndarray, "n f h w 3"]) -> Float[np.ndarray, "n f_less_1"]:
    """The mean absolute difference of each frame and the next, in levels. Raises DataError for single frames."""
    if videos.shape[1] < 2:
        raise DataError(f"videos of {videos.shape[1]} frames: motion takes at least two")
    differences = np.abs(np.diff(videos.astype(np.int16), axis=1))
    return differences.mean((2, 3, 4), dtype=np.float64)


def motion(changes: Float[np.ndarray, "n f"], reference: Float[np.ndarray, "m g"]) -> dict[str, float]:
    """ "motion", the mean change, and "motion-distance", how far the distributions of the two sets' changes lie apart.

    The distance is Wasserstein's first: the mean difference of their quantiles, in levels; 0 for equal ones.
    """
    places = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    apart = np.abs(np.quantile(changes, places) - np.quantile(reference, places)).mean()
    return {"motion": float(changes.mean()), "motion-distance": float(apart)}


def frozen(videos: UInt8[np.ndarray, "n f h w 3"], first: int = 0) -> UInt8[np.ndarray, "n f h w 3"]:
    """The first frame of each, again and again."""
    return np.repeat(videos[:, :1], videos.shape[1], axis=1)


def shuffled(videos: UInt8[np.ndarray, "n f h w 3"], first: int = 0) -> UInt8[np.ndarray, "n f h w 3"]:
    """The frames of each in another order, which depends on its number alone; `first` is that of the first video."""
    orders = [np.random.Philox(key=[_SEED, first + place]).random_raw(videos.shape[1]) for place in range(len(videos))]
    return np.stack([video[np.argsort(order)] for video, order in zip(videos, orders, strict=True)])

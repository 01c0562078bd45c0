"""A network of one matrix: colours of four parts of a picture, mixed."""

import hashlib

import jax.numpy as jnp
import numpy as np

from zigma_jax.metrics import extract


class ToyNetwork:
    """Pictures of even sizes to "pool" (b, `dim`), "logits" (b, 5) and, where asked for, "spatial" (b, 12)."""

    def __init__(self, dim=6, seed=0, name="toy", spatial=True):
        weights = np.random.default_rng(seed).integers(-8, 9, (12, dim + 5)).astype(np.float32)
        self.name = name
        self.fingerprint = hashlib.sha256(weights.tobytes()).hexdigest()
        self._weights, self._dim, self._spatial = jnp.asarray(weights), dim, spatial

    def __call__(self, images):
        # Whole numbers over a power of two: exact, where a network would round differently in batches of other sizes.
        _, h, w, _ = images.shape
        parts = images.astype(jnp.float32).reshape(-1, 2, h // 2, 2, w // 2, 3).sum((2, 4)).reshape(-1, 12) / 1024
        mixed = parts @ self._weights
        outputs = {"pool": mixed[:, : self._dim], "logits": mixed[:, self._dim :]}
        return outputs | {"spatial": parts} if self._spatial else outputs


def pictures(count, seed=0, brightness=256):
    return np.random.default_rng(seed).integers(0, brightness, (count, 4, 4, 3), np.uint8)


def features_of(count, network=None, seed=0, brightness=256, **options):
    return extract(network or ToyNetwork(), [pictures(count, seed, brightness)], **options)

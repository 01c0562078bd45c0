"""A frozen network with the interface of an autoencoder, and the cost of none."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyAutoencoder:
    """Each square of `factor` pixels becomes `channels` numbers, by a matrix and a tanh."""

    weights: dict[str, Any]
    factor: int = dataclasses.field(metadata={"static": True})
    channels: int = dataclasses.field(metadata={"static": True})
    fingerprint: str = dataclasses.field(metadata={"static": True})
    deterministic: bool = dataclasses.field(default=False, metadata={"static": True})
    gain: float = dataclasses.field(default=1.0, metadata={"static": True})
    name: str = dataclasses.field(default="toy", metadata={"static": True})
    place: str = dataclasses.field(default="nowhere", metadata={"static": True})
    scale: tuple[float, ...] = dataclasses.field(default=(0.5,), metadata={"static": True})
    shift: tuple[float, ...] = dataclasses.field(default=(0.1,), metadata={"static": True})

    @staticmethod
    def of(seed: int = 0, factor: int = 4, channels: int = 3, change: float = 0.0, **fields) -> "ToyAutoencoder":
        rng = np.random.default_rng(seed)
        kernel = rng.standard_normal((2, factor * factor * 3, channels)).astype(np.float32) / factor
        kernel[0, 0, 0] += change
        fingerprint = jnp.asarray(kernel).sum().item().hex() + kernel.tobytes().hex()[:64]
        return ToyAutoencoder({"kernel": kernel}, factor, channels, fingerprint, **fields)

    def encode(self, images):
        b, h, w, _ = images.shape
        f = self.factor
        images = images.astype(self.weights["kernel"].dtype)
        x = images.reshape(b, h // f, f, w // f, f, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // f, w // f, -1)
        mean = self.gain * jnp.tanh(x @ self.weights["kernel"][0])
        return mean, None if self.deterministic else x @ self.weights["kernel"][1] - 3

    def normalize(self, z):
        return (z - jnp.asarray(self.shift)) * jnp.asarray(self.scale)

    def with_statistics(self, scale, shift):
        return dataclasses.replace(self, scale=tuple(scale), shift=tuple(shift))

    def decode(self, x1):
        raise NotImplementedError("of a toy, whose latents are only looked at")

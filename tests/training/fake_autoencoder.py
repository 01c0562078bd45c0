"""An autoencoder of two matrices: a latent of four numbers for each two by two pixels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FakeAutoencoder:
    """Of smooth pictures, decoding undoes encoding."""

    there: Any
    back: Any
    name: str = dataclasses.field(default="fake", metadata={"static": True})
    fingerprint: str = dataclasses.field(default="f" * 64, metadata={"static": True})
    factor: int = dataclasses.field(default=2, metadata={"static": True})
    channels: int = dataclasses.field(default=4, metadata={"static": True})
    place: str = dataclasses.field(default="nowhere", metadata={"static": True})
    scale: tuple[float, ...] = dataclasses.field(default=(0.5,), metadata={"static": True})
    shift: tuple[float, ...] = dataclasses.field(default=(0.0,), metadata={"static": True})

    @staticmethod
    def make() -> "FakeAutoencoder":
        there = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
        return FakeAutoencoder(jnp.asarray(there), jnp.asarray(np.linalg.pinv(there)))

    def encode(self, images):
        n, h, w, _ = images.shape
        return images.reshape(n, h // 2, 2, w // 2, 2, 3).mean((2, 4)) @ self.there, None

    def normalize(self, z):
        return z * self.scale[0]

    def with_statistics(self, scale, shift):
        return dataclasses.replace(self, scale=tuple(scale), shift=tuple(shift))

    def decode(self, x1):
        return jnp.tanh(jnp.repeat(jnp.repeat(x1 / self.scale[0] @ self.back, 2, axis=-3), 2, axis=-2))


PROGRAM = """
import runpy, sys
import zigma_jax.networks as networks
from tests.training.fake_autoencoder import FakeAutoencoder

networks.load_autoencoder = lambda place, weights=None, **_: FakeAutoencoder.make()
networks.autoencoder_geometry = lambda place, weights=None: (2, 4)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""

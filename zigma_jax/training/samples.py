"""How a batch becomes samples, which is all that a model ever sees: pixels, or latents of pictures.

Each way is a pytree that is called with a batch and the samples' keys. It is an argument of the jitted step, so that
the weights of a network in it are neither constants of the program nor part of the training state.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from zigma_jax.data.posterior import draw, posterior

INPUTS = ("image", "mean", "std")  # what a batch may have for these functions to read


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pixels:
    """The pictures are the samples."""

    def __call__(self, batch: dict[str, Array], keys: Key[Array, " b"]) -> Float[Array, "b ..."]:
        return batch["image"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """Latents drawn from the posteriors of an encoded set, anew at every step: (z − shift) · scale.

    Attributes:
        scale, shift: one number, or one a channel: the autoencoder's.
    """

    scale: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    shift: tuple[float, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, batch: dict[str, Array], keys: Key[Array, " b"]) -> Float[Array, "b ..."]:
        latents = draw(batch["mean"], batch.get("std"), keys)
        return (latents - jnp.asarray(self.shift, jnp.float32)) * jnp.asarray(self.scale, jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncodedInStep:
    """Latents drawn from the posteriors of a batch of pictures, which the step encodes itself.

    Attributes:
        autoencoder: a frozen network, on the devices.
    """

    autoencoder: Any

    def __call__(self, batch: dict[str, Array], keys: Key[Array, " b"]) -> Float[Array, "b ..."]:
        mean, std = posterior(self.autoencoder, batch["image"])
        return self.autoencoder.normalize(draw(mean, std, keys))


Samples = Pixels | Encoded | EncodedInStep
PIXELS = Pixels()


def inputs(batch: dict[str, np.ndarray], labels: bool) -> dict[str, np.ndarray]:
    """What the step needs of a batch: pictures or posteriors, and labels if the model has classes."""
    wanted = (*INPUTS, "label") if labels else INPUTS
    return {name: batch[name] for name in wanted if name in batch}

"""How a batch becomes samples, which is all that a model ever sees: pixels, or latents of pictures.

Each way is a pytree that is called with a batch and the samples' keys. It is an argument of the jitted step, so that
the weights of a network in it are neither constants of the program nor part of the training state.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from zigma_jax.data.config import DataConfig, LatentConfig
from zigma_jax.data.posterior import draw, posterior

if TYPE_CHECKING:  # what reads data is imported where it is used, so that the training step needs none of it
    from zigma_jax.data.encoded import EncodedSet
    from zigma_jax.data.sources import Source

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


@dataclasses.dataclass(frozen=True)
class Latents:
    """What a run on latents has besides its pictures.

    Attributes:
        autoencoder: the network, with the scale and shift that the run uses; it decodes samples.
        encoded: the encoded set, which batches are read from; None if the step encodes.
        samples: for the training step.
    """

    autoencoder: Any
    encoded: "EncodedSet | None"
    samples: Samples

    def record(self) -> dict[str, Any]:
        """What a checkpoint has to keep of it, for JSON: which network, and the numbers that samples are scaled by."""
        network = self.autoencoder
        return {
            "autoencoder": network.name,
            "fingerprint": network.fingerprint,
            "scale": list(network.scale),
            "shift": list(network.shift),
        }


def open_latents(source: "Source", data: DataConfig, latent: LatentConfig, autoencoder: Any) -> Latents:
    """Finds or makes the encoded set that `latent` asks for, with a progress bar; all processes call it.

    Args:
        source, data: the pictures.
        latent: its `cache` and `statistics`.
        autoencoder: the network that the rest of `latent` names.

    Raises:
        ConfigError, DataError, BadDataError: as `zigma_jax.data.encoded.encoded_set`.
    """
    from zigma_jax.data.encoded import check_size, encoded_set

    if latent.cache == "step":
        check_size(data, autoencoder)
        return Latents(autoencoder, None, EncodedInStep(autoencoder))
    encoded = encoded_set(source, data, autoencoder, cache=latent.cache)
    if latent.statistics == "measured":
        autoencoder = autoencoder.with_statistics(encoded.statistics.scale, encoded.statistics.shift)
    return Latents(autoencoder, encoded, Encoded(tuple(autoencoder.scale), tuple(autoencoder.shift)))

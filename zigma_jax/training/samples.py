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

from zigma_jax.data.posterior import draw, posterior
from zigma_jax.errors import ConfigError
from zigma_jax.training.config import RunConfig
from zigma_jax.training.decoding import open_autoencoder

if TYPE_CHECKING:  # what reads data is imported where it is used, so that the training step needs none of it
    from zigma_jax.data.latent_sets import EncodedSet
    from zigma_jax.data.sources import Source

# What a batch may have for the training step to read, beside labels.
INPUTS = ("image", "flip", "video", "mean", "std", "tokens", "token_ids", "token_mask")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pixels:
    """The pictures or clips are the samples."""

    def __call__(self, batch: dict[str, Array], keys: Key[Array, " b"]) -> Float[Array, "b ..."]:
        return pictures(batch)


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
        mean, std = posterior(self.autoencoder, pictures(batch))
        return self.autoencoder.normalize(draw(mean, std, keys))


def pictures(batch: dict[str, Array]) -> Float[Array, "b ..."]:
    """A batch's pictures or clips in [-1, 1], pictures mirrored where `flip` says so; floats are taken as they are."""
    images = batch["image"] if "image" in batch else batch["video"]
    if images.dtype == jnp.uint8:
        # The difference is a whole number, so that one product is all that rounds: as in `to_float`, to the bit.
        images = (2 * images.astype(jnp.float32) - 255) * jnp.float32(1 / 255)
    if "flip" in batch:
        images = jnp.where(batch["flip"][:, None, None, None], images[:, :, ::-1], images)
    return images


Samples = Pixels | Encoded | EncodedInStep
PIXELS = Pixels()


def inputs(batch: dict[str, np.ndarray], labels: bool) -> dict[str, np.ndarray]:
    """What the step needs of a batch: pictures or posteriors, captions, and labels if the model has classes."""
    wanted = (*INPUTS, "label") if labels else INPUTS
    return {name: batch[name] for name in wanted if name in batch}


@dataclasses.dataclass(frozen=True)
class SampleSource:
    """How the pictures of a run become its samples.

    Attributes:
        samples: for the training step.
        encoded: the encoded set, which batches are read from; None if they hold pictures.
        autoencoder: the network, with the scale and shift that the run uses, which decodes samples; None for pixels.
    """

    samples: Samples = PIXELS
    encoded: "EncodedSet | None" = None
    autoencoder: Any = None


def open_samples(config: RunConfig, source: "Source") -> tuple[SampleSource, RunConfig]:
    """Finds or makes what `config.latent` asks for, with a progress bar; all processes call it.

    Returns, too, the configuration with what was found out on the way and has to be kept with the run: which weights
    and which commit of them, and the numbers that samples are scaled by.

    Raises:
        ConfigError: the autoencoder does not fit the model's samples and the pictures' size, or has other weights than
            those that are asked for. ConfigError, DataError, BadDataError: as `zigma_jax.data.encoded.encoded_set` and
            `zigma_jax.data.stored.stored_set`.
    """
    latent, shape = config.latent, config.model.sample_shape
    autoencoder: Any = open_autoencoder(latent, shape)
    if autoencoder is None:
        return SampleSource(), config
    height, width = (length * autoencoder.factor for length in shape[-3:-1])
    if (height, width) != config.data.size:
        raise ConfigError(
            f"config.data.image_size = {config.data.size}: {autoencoder.name} makes model.sample_shape = {shape} of "
            f"pictures of {(height, width)}"
        )
    found = (_in_step if latent.cache == "step" else _encoded)(config, source, autoencoder)
    used = found.autoencoder
    latent = dataclasses.replace(latent, fingerprint=used.fingerprint, scale=tuple(used.scale), shift=tuple(used.shift))
    if used.place.startswith("hf://"):  # which has the commit in it
        latent = dataclasses.replace(latent, autoencoder=f"{used.name}:{used.place}", weights=None)
    return found, dataclasses.replace(config, latent=latent)


def _in_step(config: RunConfig, source: "Source", autoencoder: Any) -> SampleSource:
    from zigma_jax.data.encoded import check_size

    check_size(config.data, autoencoder)
    return SampleSource(EncodedInStep(autoencoder), None, autoencoder)


def _encoded(config: RunConfig, source: "Source", autoencoder: Any) -> SampleSource:
    from zigma_jax.data.encoded import encoded_set
    from zigma_jax.data.stored import is_stored, stored_set

    latent = config.latent
    if is_stored(latent.cache):
        encoded = stored_set(source, config.data, autoencoder, cache=latent.cache)
    else:
        encoded = encoded_set(source, config.data, autoencoder, cache=latent.cache, windows=latent.windows)
    if latent.statistics == "measured":
        measured = encoded.statistics
        autoencoder = autoencoder.with_statistics(
            measured.scale if latent.scale is None else autoencoder.scale,
            measured.shift if latent.shift is None else autoencoder.shift,
        )
    return SampleSource(Encoded(tuple(autoencoder.scale), tuple(autoencoder.shift)), encoded, autoencoder)

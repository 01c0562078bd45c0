"""Samples as pictures, and pictures as samples: one way for previews, `sample`, `evaluate` and training."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, UInt8

from zigma_jax.data.config import LatentConfig
from zigma_jax.data.posterior import Autoencoder
from zigma_jax.errors import ConfigError, DivergedError
from zigma_jax.training.sampling import on_host
from zigma_jax.training.sharding import batch_sharding, put, replicated, samples_over

NOT_FINITE = (255, 0, 255)
PIXELS = 2**19  # decoded or encoded by one device at a time: eight pictures of 256 x 256


class Decoder:
    """Turns samples of one shape into pictures of bytes, and pictures into samples.

    Pixels are converted on the devices that hold them. Latents go through the autoencoder, divided over the mesh, in
    batches of at most `PIXELS` pixels a device and of one compiled shape, so that memory does not grow with the number
    of samples. Neither the batches nor the devices change a picture by more than float32 rounding, which moves a byte
    by one at most, and rarely.

    sample_shape: of a sample: ([frames,] height, width, channels).
    mesh: the devices that do the work.
    autoencoder: None for pixels. Its weights are copied to every device.

    Attributes:
        picture_shape: of what comes out: ([frames,] height, width, 3).
        size: (height, width) of it.

    Raises:
        ConfigError: latents without an autoencoder, or with one of other channels.
    """

    def __init__(self, sample_shape: tuple[int, ...], mesh: Mesh, autoencoder: Autoencoder | None = None):
        *outer, height, width, _ = sample_shape
        if autoencoder is None:
            check_pixels(sample_shape)
            factor = 1
        else:
            check_autoencoder(autoencoder.name, autoencoder.channels, sample_shape)
            factor = autoencoder.factor
        self.sample_shape, self.mesh, self.autoencoder = sample_shape, mesh, autoencoder
        self.size = (height * factor, width * factor)
        self.picture_shape = (*outer, *self.size, 3)
        self._placed = None if autoencoder is None else put(autoencoder, replicated(mesh))
        self._most = samples_over(mesh) * max(1, PIXELS // math.prod(self.size))  # frames in a batch of the autoencoder
        self._batch = 0  # frames in the largest batch so far, to which the others are filled up

    def __call__(self, samples: Float[Array | np.ndarray, "n ..."]) -> UInt8[np.ndarray, "n ..."]:
        """The pictures (n, *picture_shape) of samples (n, *sample_shape), which are in [-1, 1] if they are pixels.

        They are rounded and clipped. What is not finite is magenta, so that a broken sample looks broken.
        """
        return self._decode(samples)[0]

    def checked(self, samples: Float[Array | np.ndarray, "n ..."], first: int = 0) -> UInt8[np.ndarray, "n ..."]:
        """The same of samples number `first` and those after it, all of which have to be finite.

        Raises:
            DivergedError: a sample, or its picture, is not finite; names the first by its number.
        """
        pictures, finite = self._decode(samples)
        if not finite.all():
            broken = first + int(np.argmin(finite))
            raise DivergedError(f"sample {broken} is not finite: the model, or the solver, has diverged")
        return pictures

    def encode(self, images: Float[np.ndarray, "n *f h w 3"]) -> Float[np.ndarray, "n ..."]:
        """Samples (n, *sample_shape), float32, of pictures or clips in [-1, 1]: they themselves, or latents.

        A latent is the mean of the encoder's distribution, normalized as the model was trained on it.
        """
        if self._placed is None:
            return images
        frames = images.reshape(-1, *images.shape[-3:])
        encoded = np.concatenate([encoded for (encoded,) in self._in_batches(_encode, frames)])
        return encoded.reshape(len(images), *self.sample_shape)

    def _decode(self, samples: Array | np.ndarray) -> tuple[UInt8[np.ndarray, "n ..."], Bool[np.ndarray, " n"]]:
        if self._placed is None:
            pictures, finite = to_bytes(samples)
            return on_host(pictures), on_host(finite)
        latents = on_host(samples)  # small beside the pictures, and divided anew
        parts = self._in_batches(_decode, latents.reshape(-1, *latents.shape[-3:]))
        pictures, finite = (np.concatenate(part) for part in zip(*parts, strict=True))
        n = len(latents)
        return pictures.reshape(n, *self.picture_shape), finite.reshape(n, -1).all(1)

    def _in_batches(self, function, frames: np.ndarray):
        """What `function` of the autoencoder makes of the frames, batch by batch, on the host."""
        devices = samples_over(self.mesh)
        self._batch = max(self._batch, min(self._most, -(-len(frames) // devices) * devices))
        sharding = batch_sharding(self.mesh)
        for first in range(0, len(frames), self._batch):
            batch = frames[first : first + self._batch].astype(np.float32, copy=False)
            filled_up = put(batch[np.arange(self._batch) % len(batch)], sharding)
            yield tuple(on_host(out)[: len(batch)] for out in function(self._placed, filled_up, sharding=sharding))


def open_autoencoder(latent: LatentConfig, sample_shape: tuple[int, ...]) -> Autoencoder | None:
    """The autoencoder that `latent` names, with its scale and shift; None for pixels.

    Raises:
        ConfigError: the samples are latents and no autoencoder is named, or one of other channels, before any weights
            are read; or its weights are not those that `latent` wants. Otherwise as `load_autoencoder`.
    """
    if not latent.autoencoder:
        check_pixels(sample_shape)
        return None
    from zigma_jax.networks import autoencoder_geometry, load_autoencoder

    _, channels = autoencoder_geometry(latent.autoencoder, latent.weights)
    check_autoencoder(latent.autoencoder, channels, sample_shape)
    autoencoder = load_autoencoder(
        latent.autoencoder, latent.weights, dtype=latent.dtype, scale=latent.scale, shift=latent.shift
    )
    if latent.fingerprint not in ("", autoencoder.fingerprint):
        raise ConfigError(
            f"latent.autoencoder = {latent.autoencoder!r}: the fingerprint of its weights is "
            f"{autoencoder.fingerprint[:12]}…, and the run was trained with {latent.fingerprint[:12]}…: give the "
            "autoencoder that it was trained with"
        )
    return autoencoder


def latent_shape(autoencoder: str, size: tuple[int, int]) -> tuple[int, int, int]:
    """(height, width, channels) of the latents of pictures of a size. Raises ConfigError if there are none."""
    from zigma_jax.networks import autoencoder_geometry

    factor, channels = autoencoder_geometry(autoencoder, None)
    if size[0] % factor or size[1] % factor:
        raise ConfigError(f"pictures of {size} pixels: {autoencoder!r} encodes multiples of {factor}")
    return size[0] // factor, size[1] // factor, channels


def check_pixels(sample_shape: tuple[int, ...]) -> None:
    """Raises ConfigError for samples that only an autoencoder can turn into pictures."""
    if sample_shape[-1] not in (1, 3):
        raise ConfigError(
            f"the samples have {sample_shape[-1]} channels, so they are latents: pictures come from the autoencoder "
            "that the model was trained with. Give it, for example as --autoencoder=hf://stabilityai/sd-vae-ft-ema or "
            "--autoencoder=taef2:DIR (docs/sampling.md)"
        )


def check_autoencoder(name: str, channels: int, sample_shape: tuple[int, ...]) -> None:
    """Raises ConfigError for an autoencoder whose latents have other channels than the samples."""
    if channels != sample_shape[-1]:
        raise ConfigError(
            f"autoencoder {name!r}: its latents have {channels} channels, and the model's samples of shape "
            f"{sample_shape} have {sample_shape[-1]}: give the autoencoder that the model was trained with"
        )


@jax.jit
def to_bytes(images: Float[Array, "n ..."]) -> tuple[UInt8[Array, "n ..."], Bool[Array, " n"]]:
    """Bytes (n, …, 3) of pictures in [-1, 1] of 1 or 3 channels, and which of the pictures are finite.

    Rounded and clipped; grey as RGB; magenta where they are not finite.
    """
    images = images.astype(jnp.float32)
    finite = jnp.isfinite(images).all(-1, keepdims=True)
    pixels = jnp.clip(jnp.round((jnp.where(finite, images, 0) + 1) * 127.5), 0, 255).astype(jnp.uint8)
    rgb = jnp.where(finite, pixels, jnp.asarray(NOT_FINITE, jnp.uint8))
    return rgb, finite.all(axis=tuple(range(1, finite.ndim)))


def _decode_latents(autoencoder, latents: Float[Array, "n h w c"], sharding: NamedSharding):
    # A decoder may hide what is not finite: the tiny ones clamp infinity.
    finite = jnp.isfinite(latents).all((1, 2, 3), keepdims=True)
    images = jnp.where(finite, autoencoder.decode(latents), jnp.nan)
    return to_bytes(jax.lax.with_sharding_constraint(images, sharding))


def _encode_pictures(autoencoder, images: Float[Array, "n h w 3"], sharding: NamedSharding):
    mean, _ = autoencoder.encode(images)
    latents = autoencoder.normalize(mean).astype(jnp.float32)
    return (jax.lax.with_sharding_constraint(latents, sharding),)


_decode = jax.jit(_decode_latents, static_argnames="sharding")
_encode = jax.jit(_encode_pictures, static_argnames="sharding")

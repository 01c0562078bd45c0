"""What an autoencoder knows of a picture: a normal distribution of latents, from which training draws."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

_DRAW = 3  # fold_in's number for the draw; 0, 1 and 2 are what the step splits a sample's key into


@runtime_checkable
class Autoencoder(Protocol):
    """What the project needs of an autoencoder, as `zigma_jax.networks.load_autoencoder` gives them.

    A pytree whose leaves are the weights. `factor`: pixels a side of one latent position; `channels` of the latents;
    `name` and `fingerprint` say which network it is; normalized latents are (z − shift) · scale, one number or one a
    channel. `place` says where the weights were read. `encode` takes pictures (b, h, w, 3) in [-1, 1] and returns the
    mean and the logarithm of the variance, each (b, h / factor, w / factor, channels), in the network's own units; None
    for the latter if the network is deterministic. `decode` takes normalized latents, also of videos, and returns
    pictures.
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def factor(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def scale(self) -> tuple[float, ...]: ...
    @property
    def shift(self) -> tuple[float, ...]: ...

    def encode(self, images: Any) -> tuple[Any, Any]: ...
    def normalize(self, z: Any) -> Any: ...
    def decode(self, x1: Any) -> Any: ...
    def with_statistics(self, scale: Any, shift: Any) -> Any: ...


def posterior(
    autoencoder: Any, images: Float[Array, "b height width 3"] | Float[Array, "b f height width 3"]
) -> tuple[Float[Array, "b *f h w c"], Float[Array, "b *f h w c"] | None]:
    """Mean and standard deviation, float32, of the latents of pictures in [-1, 1]; None where there is no deviation.

    Of clips each frame is a picture, and the frames are computed one after the other, in the memory that one takes.
    The logarithm of the variance is clipped to [-30, 20], as the autoencoders of Stable Diffusion were trained.
    """
    if images.ndim == 5:
        parts = jax.lax.map(lambda frame: posterior(autoencoder, frame), jnp.moveaxis(images, 1, 0))
        return jax.tree.map(lambda part: jnp.moveaxis(part, 0, 1), parts)
    mean, logvar = autoencoder.encode(images)
    mean = mean.astype(jnp.float32)
    return mean, None if logvar is None else jnp.exp(jnp.clip(logvar.astype(jnp.float32), -30.0, 20.0) / 2)


def draw(
    mean: Float[Array, "b *shape"], std: Float[Array, "b *shape"] | None, keys: Key[Array, " b"]
) -> Float[Array, "b *shape"]:
    """One latent of each posterior, float32; the noise of a sample depends on its key alone."""
    mean = mean.astype(jnp.float32)
    if std is None:
        return mean
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, _DRAW), mean.shape[1:]))(keys)
    return mean + std.astype(jnp.float32) * noise

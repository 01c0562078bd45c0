"""Autoencoders, between pictures and the latents that diffusion models are trained on: `load_autoencoder`.

ae = load_autoencoder("hf://stabilityai/sd-vae-ft-ema")   # by the config.json there
ae = load_autoencoder("taef2", DIRECTORY)                 # or "taef2:DIRECTORY", as on the command line
mean, logvar = ae.encode(images)                          # images (b, h, w, 3) in [-1, 1]
x1 = ae.normalize(mean)                                   # what a diffusion model is trained on
images = ae.decode(x1)
"""

import dataclasses
import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped

from zigma_jax.errors import ConfigError, WeightsError
from zigma_jax.networks.autoencoder_files import Located, locate, parse
from zigma_jax.networks.autoencoder_kl import AutoencoderKL, KLConfig
from zigma_jax.networks.autoencoder_layers import Layers
from zigma_jax.networks.tiny_autoencoder import CHANNELS as TINY_KINDS
from zigma_jax.networks.tiny_autoencoder import TinyAutoencoder, TinyConfig

DTYPES = ("float32", "bfloat16")
# Numbers of a picture's layer up to which it is computed in one piece: pictures of 512 × 512 with SD's widths.
WHOLE = 1 << 26


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """An autoencoder with its weights: a pytree, to be given to jit and `jax.device_put` as it is.

    Pictures and latents that are sharded over several devices by their first axis are taken as they are, and what
    comes back is sharded in the same way; `jax.device_put(autoencoder, replicated sharding)` once beforehand saves
    copying the weights at every call.

    Attributes:
        weights: the network's arrays, as an `nnx.State`.
        graphdef: its structure, an `nnx.GraphDef`; `nnx.merge(graphdef, weights)` is the module.
        name: its kind, "kl" or that of a tiny one.
        place: where the weights were read; on the hub with the commit.
        fingerprint: sha256 (hex) of the weights as they were in the file: latents of two autoencoders belong together
            where name and fingerprint are equal.
        factor: pixels a latent's side, as in 256 / 32 = 8.
        channels: of the latents.
        scale, shift: normalized latents are (z − shift) · scale; one number, or one a channel.
    """

    weights: Any
    graphdef: Any = dataclasses.field(metadata={"static": True})
    name: str = dataclasses.field(metadata={"static": True})
    place: str = dataclasses.field(metadata={"static": True})
    fingerprint: str = dataclasses.field(metadata={"static": True})
    factor: int = dataclasses.field(metadata={"static": True})
    channels: int = dataclasses.field(metadata={"static": True})
    scale: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    shift: tuple[float, ...] = dataclasses.field(metadata={"static": True})

    def encode(
        self, images: Shaped[Array | np.ndarray, "..."]
    ) -> tuple[Float[Array, "*b h w z"], Float[Array, "*b h w z"] | None]:
        """Mean and log-variance of pictures' latents, in the network's own units; compiled once a shape.

        Args:
            images: floats (b, h, w, 3) in [-1, 1], or videos (b, f, h, w, 3).

        Returns:
            mean: (b, h / factor, w / factor, channels), float32; (b, f, …) of videos.
            logvar: the same shape, float32, as the network gives it, not clipped. None where the network gives numbers
                and no distribution.

        Raises:
            ConfigError: the pictures are not floats, have another shape, or sides that `factor` does not divide.
            WeightsError: the file of weights has a decoder only.
        """
        self._check(images, 3, "pictures")
        if any(side % self.factor for side in images.shape[-3:-1]):
            h, w = images.shape[-3:-1]
            raise ConfigError(
                f"pictures of {h} × {w} pixels: {self.name} needs sides that are multiples of {self.factor}"
            )
        if "encoder" not in self.weights:
            raise WeightsError(f"{self.name}: the file of weights has a decoder only, which encodes no pictures")
        return _encode(self.graphdef, self.weights, images)

    def decode(self, x1: Shaped[Array | np.ndarray, "..."]) -> Float[Array, "*b h w 3"]:
        """Pictures of normalized latents; compiled once a shape.

        Args:
            x1: floats (b, h, w, channels), or of videos (b, f, h, w, channels), whose frames are decoded one by one.

        Returns:
            (b, factor · h, factor · w, 3) or (b, f, …), float32, in about [-1, 1]: they are not clipped.

        Raises:
            ConfigError: the latents are not floats or have another shape.
            WeightsError: the file of weights has an encoder only.
        """
        self._check(x1, self.channels, "latents")
        if "decoder" not in self.weights:
            raise WeightsError(f"{self.name}: the file of weights has an encoder only, which decodes no latents")
        return _decode(self.graphdef, self.weights, x1, self.scale, self.shift)

    def normalize(self, z: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
        """(z − shift) · scale: latents in the network's units to those that diffusion models are trained on."""
        return _normalize(z, self.scale, self.shift)

    def denormalize(self, x1: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
        """x1 / scale + shift, the inverse of `normalize`."""
        return _denormalize(x1, self.scale, self.shift)

    def with_statistics(
        self, scale: float | tuple[float, ...] | None = None, shift: float | tuple[float, ...] | None = None
    ) -> "Autoencoder":
        """A copy with another scale or shift, one number or one a channel; None keeps the present one.

        Raises ConfigError: another number of values, a value that is not finite, a scale of 0.
        """
        return dataclasses.replace(
            self,
            scale=self.scale if scale is None else _values("scale", scale, self.channels),
            shift=self.shift if shift is None else _values("shift", shift, self.channels),
        )

    def _check(self, x: Shaped[Array | np.ndarray, "..."], channels: int, what: str) -> None:
        if x.ndim not in (4, 5) or x.shape[-1] != channels or 0 in x.shape:
            shapes = f"(batch, height, width, {channels}) or (batch, frames, height, width, {channels})"
            raise ConfigError(f"{what} have shape {x.shape}: {self.name} takes {shapes}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ConfigError(f"{what} have dtype {x.dtype}: {self.name} takes floating-point numbers")


def load_autoencoder(
    kind_or_place: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "float32",
    scale: float | tuple[float, ...] | None = None,
    shift: float | tuple[float, ...] | None = None,
) -> Autoencoder:
    """The autoencoder of a place.

    Args:
        kind_or_place: one of `KINDS` (then `weights` says where), a place alone, or "KIND:PLACE". A place is a
            directory, a file, or hf://owner/repository. Without a kind its config.json, or else the names of its
            files, say which it is.
        weights: the place, if `kind_or_place` is a kind.
        dtype: "float32" (of full precision on every device) or "bfloat16", for everything but norms, softmax and
            results. There is no float16: SDXL's autoencoder overflows in it.
        scale, shift: in place of those in config.json.

    Raises:
        ConfigError: no such kind, dtype, scale or shift.
        WeightsError: no such place; no config.json; a configuration of something else; a damaged file; a file that
            lacks tensors, has others, or has some of another shape (named one by one).
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}: must be {' or '.join(DTYPES)}")
    located = locate(*parse(kind_or_place, weights))
    config = _config(located)
    file = located.open()
    layers = Layers(file, jnp.dtype(dtype), WHOLE)
    network = AutoencoderKL(layers, config) if isinstance(config, KLConfig) else TinyAutoencoder(layers, config)
    file.check()
    graphdef, state = nnx.split(network)
    autoencoder = Autoencoder(
        state,
        graphdef,
        name=located.kind,
        place=located.weights.place,
        fingerprint=file.fingerprint(),
        factor=config.factor,
        channels=config.latent_channels,
        scale=config.scale,
        shift=config.shift,
    )
    return autoencoder.with_statistics(scale, shift)


def autoencoder_geometry(
    kind_or_place: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None
) -> tuple[int, int]:
    """Factor and channels of an autoencoder, as of `load_autoencoder`, without its weights.

    A tiny kind says it itself, even where no place is given; otherwise config.json does.
    """
    kind, place = parse(kind_or_place, weights)
    config = TinyConfig.of(kind) if kind in TINY_KINDS else _config(locate(kind, place))
    return config.factor, config.latent_channels


def _config(located: Located) -> KLConfig | TinyConfig:
    place = f"config.json of {located.weights.place}"
    if located.kind == "kl":
        return KLConfig.read(located.config or {}, place)
    if located.config is None:
        return TinyConfig.of(located.kind)
    return TinyConfig.read(located.kind, located.config, place)


def _values(name: str, given, channels: int) -> tuple[float, ...]:
    values = np.asarray(given, np.float64)
    if values.ndim > 1 or values.size not in (1, channels):
        raise ConfigError(f"{name} = {given!r}: must be one number, or {channels}, one a channel")
    if not np.isfinite(values).all() or (name == "scale" and (values == 0).any()):
        raise ConfigError(f"{name} = {given!r}: must be finite" + ", and not 0" * (name == "scale"))
    return tuple(values.reshape(-1).tolist())


def _normalize(z, scale: tuple[float, ...], shift: tuple[float, ...]):
    return (jnp.asarray(z) - jnp.asarray(shift, jnp.float32)) * jnp.asarray(scale, jnp.float32)


def _denormalize(x1, scale: tuple[float, ...], shift: tuple[float, ...]):
    return jnp.asarray(x1) / jnp.asarray(scale, jnp.float32) + jnp.asarray(shift, jnp.float32)


@partial(jax.jit, static_argnums=0)
def _encode(graphdef, weights, images):
    network = nnx.merge(graphdef, weights)
    with jax.default_matmul_precision("highest"):  # else GPUs and TPUs round the factors of float32 products
        return _frames(network.encode, images)


@partial(jax.jit, static_argnums=(0, 3, 4))
def _decode(graphdef, weights, x1, scale, shift):
    network = nnx.merge(graphdef, weights)
    with jax.default_matmul_precision("highest"):
        return _frames(lambda x1: network.decode(_denormalize(x1, scale, shift)), x1)


def _frames(function, x):
    """`function` of pictures; of videos frame by frame, so that a long video needs little more memory than a frame."""
    if x.ndim == 4:
        return function(x)
    frames = jax.lax.map(function, jnp.moveaxis(x, 1, 0))
    return jax.tree.map(lambda y: jnp.moveaxis(y, 0, 1), frames)

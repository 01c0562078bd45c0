"""The tiny autoencoders of Ollin Boer Bohan (github.com/madebyollin/taesd): TAESD, TAESDXL, TAESD3, TAEF1, TAEF2.

Each was distilled from the autoencoder of a large model and shares its latents, up to a fixed scale. It encodes to
numbers, not to a distribution. One network serves all: they differ in the number of channels, and TAEF2's blocks of
lowest resolution add a branch with a group norm.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zigma_jax.errors import WeightsError
from zigma_jax.networks.autoencoder_layers import Enlarged, Layers

CLASS = "AutoencoderTiny"
CHANNELS = {"taesd": 4, "taesdxl": 4, "taesd3": 16, "taef1": 16, "taef2": 32}
POOLED = ("taef2",)
FACTOR = 8
WIDTH = 64
_MAGNITUDE = 3  # latents are kept within it by the decoder


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    """What tells the tiny autoencoders apart.

    Attributes:
        latent_channels: of the latents.
        pooled: the blocks of lowest resolution have a branch with a group norm.
        scale, shift: of the latents that diffusion models are trained on.
    """

    latent_channels: int
    pooled: bool = False
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)
    factor = FACTOR

    @staticmethod
    def of(kind: str) -> "TinyConfig":
        return TinyConfig(CHANNELS[kind], kind in POOLED)

    @staticmethod
    def read(kind: str, config: Mapping[str, Any], place: str) -> "TinyConfig":
        """From the contents of diffusers' config.json at `place`, for one of `CHANNELS` or "tiny", which is any.

        Raises WeightsError: a field has a value that this network does not know, or that is not of this kind.
        """
        expected = {
            "_class_name": CLASS,
            "in_channels": 3,
            "out_channels": 3,
            "encoder_block_out_channels": [WIDTH] * 4,
            "decoder_block_out_channels": [WIDTH] * 4,
            "num_encoder_blocks": [1, 3, 3, 3],
            "num_decoder_blocks": [3, 3, 3, 1],
            "act_fn": "relu",
            "upsample_fn": "nearest",
            "upsampling_scaling_factor": 2,
        }
        for name, value in expected.items():
            if config.get(name, value) != value:
                raise WeightsError(f"{place}: {name} = {config[name]!r}: this network has {value!r}")
        channels = config.get("latent_channels", 4)
        if type(channels) is not int or channels != CHANNELS.get(kind, channels) or channels < 1:
            wanted = CHANNELS.get(kind, "a whole number above 0")
            raise WeightsError(f"{place}: latent_channels = {channels!r}: {kind!r} has {wanted}")
        scale, shift = config.get("scaling_factor", 1.0), config.get("shift_factor", 0.0)
        for name, value in (("scaling_factor", scale), ("shift_factor", shift)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise WeightsError(f"{place}: {name} = {value!r}: must be a number")
        return TinyConfig(channels, kind in POOLED, (float(scale),), (float(shift),))


class TinyAutoencoder(nnx.Module):
    """Both halves; a file that has the tensors of only one half gives only that one, the other is None.

    Args:
        layers: of a file with the names of `canonical`.
    """

    def __init__(self, layers: Layers, config: TinyConfig):
        channels, pooled = config.latent_channels, config.pooled
        encoder, decoder = layers.halves()
        self.encoder = _Encoder(layers, channels, pooled) if encoder else None
        self.decoder = _Decoder(layers, channels, pooled) if decoder else None
        self.dtype = layers.dtype

    def encode(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 z"], None]:
        """Pictures in [-1, 1] to latents."""
        assert self.encoder is not None
        return self.encoder((images.astype(self.dtype) + 1) / 2).astype(jnp.float32), None

    def decode(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 3"]:
        """Latents to pictures in [-1, 1], which are not clipped."""
        assert self.decoder is not None
        z = jnp.tanh(z.astype(jnp.float32) / _MAGNITUDE) * _MAGNITUDE
        return self.decoder(z.astype(self.dtype)).astype(jnp.float32) * 2 - 1


class _Encoder(nnx.Module):
    def __init__(self, layers: Layers, channels: int, pooled: bool):
        self.conv_in = layers.conv("encoder.0", 3, WIDTH)
        self.first = _Block(layers, "encoder.1", False)
        self.downs = nnx.List([layers.conv(f"encoder.{i}", WIDTH, WIDTH, bias=False) for i in (2, 6, 10)])
        self.blocks = nnx.List(
            [_Block(layers, f"encoder.{i + n}", pooled and i == 11) for i in (3, 7, 11) for n in range(3)]
        )
        self.conv_out = layers.conv("encoder.14", WIDTH, channels)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 z"]:
        x = self.first(self.conv_in(x))
        for level, down in enumerate(self.downs):
            x = down(x, stride=2)
            for block in self.blocks[3 * level : 3 * level + 3]:
                x = block(x)
        return self.conv_out(x)


class _Decoder(nnx.Module):
    def __init__(self, layers: Layers, channels: int, pooled: bool):
        self.conv_in = layers.conv("decoder.1", channels, WIDTH)
        self.blocks = nnx.List(
            [_Block(layers, f"decoder.{i + n}", pooled and i == 3) for i in (3, 8, 13) for n in range(3)]
        )
        self.ups = nnx.List([layers.conv(f"decoder.{i}", WIDTH, WIDTH, bias=False) for i in (7, 12, 17)])
        self.last = _Block(layers, "decoder.18", False)
        self.conv_out = layers.conv("decoder.19", WIDTH, 3)

    def __call__(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 3"]:
        x = jax.nn.relu(self.conv_in(z))
        for level, up in enumerate(self.ups):
            first, second, third = self.blocks[3 * level : 3 * level + 3]
            x = up.enlarged(third(second(first(x))))
        return self.conv_out(self.last(x))


class _Block(nnx.Module):
    """Three convolutions beside the identity, after the pooled branch where there is one."""

    def __init__(self, layers: Layers, name: str, pooled: bool):
        self.convs = nnx.List([layers.conv(f"{name}.conv.{i}", WIDTH, WIDTH) for i in (0, 2, 4)])
        self.pool = _Pool(layers, f"{name}.pool") if pooled else None

    def __call__(self, x: "Float[Array, 'b h w c'] | Enlarged") -> Float[Array, "b h w c"]:
        if self.pool is not None and not isinstance(x, Enlarged):
            x = x + self.pool(x)
        first, second, third = self.convs
        y = second(first(x), prepare=jax.nn.relu)
        return jax.nn.relu(third(y, prepare=jax.nn.relu, residual=x))


class _Pool(nnx.Module):
    def __init__(self, layers: Layers, name: str):
        self.widen = layers.conv(f"{name}.0", WIDTH, 4 * WIDTH, 1, bias=False)
        self.norm = layers.norm(f"{name}.1", 4 * WIDTH, 4, epsilon=1e-5)
        self.narrow = layers.conv(f"{name}.3", 4 * WIDTH, WIDTH, 1, bias=False)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = self.widen(x)
        return self.narrow(y, prepare=self.norm(y, jax.nn.relu))


def canonical(name: str) -> str:
    """The original's name of a tensor in diffusers' file, with "encoder." or "decoder." before it.

    diffusers has the decoder's first layer, which keeps latents within bounds and has no tensors, outside its list:
    its numbers are smaller by one there.
    """
    name = re.sub(r"^encoder\.layers\.", "encoder.", name)
    return re.sub(r"^decoder\.layers\.(\d+)", lambda m: f"decoder.{int(m[1]) + 1}", name)

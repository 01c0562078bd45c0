"""The autoencoder of latent diffusion (arXiv 2112.10752), as diffusers' AutoencoderKL: SD 1 and 2, SDXL, SD3, FLUX.

Everything that tells them apart is in their config.json. Layers bear the names of diffusers' files; `canonical` gives
these names to what older files and the original programs call otherwise.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from zigma_jax.errors import WeightsError
from zigma_jax.networks.autoencoder_layers import Enlarged, Layers, attend

CLASS = "AutoencoderKL"


@dataclasses.dataclass(frozen=True)
class KLConfig:
    """What a config.json says about the architecture; the names are its names.

    Attributes:
        scale, shift: of the latents that diffusion models are trained on, one number or one a channel.
    """

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    use_quant_conv: bool
    use_post_quant_conv: bool
    mid_block_add_attention: bool
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @property
    def factor(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)

    @staticmethod
    def read(config: Mapping[str, Any], place: str) -> "KLConfig":
        """From the contents of the file `place`, checked; absent fields are what diffusers takes them for.

        Raises WeightsError: a field has a value that this network does not know.
        """

        def refuse(name: str, rule: str) -> NoReturn:
            raise WeightsError(f"{place}: {name} = {config.get(name)!r}: {rule}")

        def whole(name: str, default: int) -> int:
            value = config.get(name, default)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                refuse(name, "must be a whole number above 0")
            return value

        def truth(name: str) -> bool:
            value = config.get(name, True)
            if not isinstance(value, bool):
                refuse(name, "must be true or false")
            return value

        def numbers(name: str, default: float) -> tuple[float, ...]:
            value = config.get(name)
            value = default if value is None else value
            values = tuple(value) if isinstance(value, list) else (value,)
            if any(isinstance(v, bool) or not isinstance(v, int | float) or not np.isfinite(v) for v in values):
                refuse(name, "must be a number or a list of numbers")
            if len(values) not in (1, channels):
                refuse(name, f"must be one number or {channels}, one a channel")
            return tuple(float(v) for v in values)

        if config.get("_class_name", CLASS) != CLASS:
            refuse("_class_name", f"this network is {CLASS}")
        blocks, groups = config.get("block_out_channels"), whole("norm_num_groups", 32)
        if not isinstance(blocks, list) or not blocks or not all(type(n) is int and n > 0 for n in blocks):
            refuse("block_out_channels", "must be a list of whole numbers above 0")
        if any(n % groups for n in blocks):
            refuse("block_out_channels", f"must be multiples of norm_num_groups = {groups}")
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if config.get(name, [kind] * len(blocks)) != [kind] * len(blocks):
                refuse(name, f"must be {kind} for each of the {len(blocks)} block_out_channels")
        for name, known in (("in_channels", (3,)), ("out_channels", (3,)), ("act_fn", ("silu", "swish"))):
            if config.get(name, known[0]) not in known:
                refuse(name, f"must be {' or '.join(map(str, known))}")
        channels = whole("latent_channels", 4)
        deviations = numbers("latents_std", 1.0)
        factors = numbers("scaling_factor", 0.18215)
        if 0 in deviations or 0 in factors:
            refuse("latents_std" if 0 in deviations else "scaling_factor", "must not be 0")
        means = "latents_mean" if config.get("latents_mean") is not None else "shift_factor"
        scale = np.broadcast_arrays(factors, deviations)
        return KLConfig(
            block_out_channels=tuple(blocks),
            layers_per_block=whole("layers_per_block", 1),
            latent_channels=channels,
            norm_num_groups=groups,
            use_quant_conv=truth("use_quant_conv"),
            use_post_quant_conv=truth("use_post_quant_conv"),
            mid_block_add_attention=truth("mid_block_add_attention"),
            scale=tuple(float(v) for v in scale[0] / scale[1]),
            shift=numbers(means, 0.0),
        )


class AutoencoderKL(nnx.Module):
    """Both halves; a file that has the tensors of only one half gives only that one, the other is None.

    Args:
        layers: of a file with the names of `canonical`.
    """

    def __init__(self, layers: Layers, config: KLConfig):
        encoder, decoder = layers.halves()
        z = config.latent_channels
        quant, post_quant = encoder and config.use_quant_conv, decoder and config.use_post_quant_conv
        self.encoder = Encoder(layers, config) if encoder else None
        self.quant_conv = layers.conv("quant_conv", 2 * z, 2 * z, 1) if quant else None
        self.decoder = Decoder(layers, config) if decoder else None
        self.post_quant_conv = layers.conv("post_quant_conv", z, z, 1) if post_quant else None
        self.dtype = layers.dtype

    def encode(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 z"], Float[Array, "b h2 w2 z"]]:
        """Pictures in [-1, 1] to mean and logarithm of the variance, as the network gives it."""
        assert self.encoder is not None
        moments = self.encoder(images.astype(self.dtype))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, logvar

    def decode(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 3"]:
        """Latents in the network's own units to pictures in [-1, 1], which are not clipped."""
        assert self.decoder is not None
        z = z.astype(self.dtype)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z).astype(jnp.float32)


class Encoder(nnx.Module):
    def __init__(self, layers: Layers, config: KLConfig):
        channels, groups = config.block_out_channels, config.norm_num_groups
        into = channels[0]
        self.conv_in = layers.conv("encoder.conv_in", 3, into)
        blocks: list[nnx.Module] = []
        for level, out in enumerate(channels):
            name = f"encoder.down_blocks.{level}"
            for i in range(config.layers_per_block):
                blocks.append(Resnet(layers, f"{name}.resnets.{i}", into, out, groups))
                into = out
            if level < len(channels) - 1:
                blocks.append(Downsample(layers, f"{name}.downsamplers.0.conv", out))
        self.blocks = nnx.List([*blocks, *_middle(layers, "encoder.mid_block", config)])
        self.norm_out = layers.norm("encoder.conv_norm_out", into, groups)
        self.conv_out = layers.conv("encoder.conv_out", into, 2 * config.latent_channels)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 z"]:
        x = self.conv_in(x)
        for block in self.blocks:
            x = block(x)
        return self.conv_out(x, prepare=self.norm_out(x, jax.nn.silu))


class Decoder(nnx.Module):
    def __init__(self, layers: Layers, config: KLConfig):
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        into = channels[0]
        self.conv_in = layers.conv("decoder.conv_in", config.latent_channels, into)
        blocks: list[nnx.Module] = [*_middle(layers, "decoder.mid_block", config)]
        for level, out in enumerate(channels):
            name = f"decoder.up_blocks.{level}"
            for i in range(config.layers_per_block + 1):
                blocks.append(Resnet(layers, f"{name}.resnets.{i}", into, out, groups))
                into = out
            if level < len(channels) - 1:
                blocks.append(Upsample(layers, f"{name}.upsamplers.0.conv", out))
        self.blocks = nnx.List(blocks)
        self.norm_out = layers.norm("decoder.conv_norm_out", into, groups)
        self.conv_out = layers.conv("decoder.conv_out", into, 3)

    def __call__(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 3"]:
        x = self.conv_in(z)
        for block in self.blocks:
            x = block(x)
        return self.conv_out(x, prepare=self.norm_out(x, jax.nn.silu))


class Resnet(nnx.Module):
    def __init__(self, layers: Layers, name: str, into: int, out: int, groups: int):
        self.norm1, self.conv1 = layers.norm(f"{name}.norm1", into, groups), layers.conv(f"{name}.conv1", into, out)
        self.norm2, self.conv2 = layers.norm(f"{name}.norm2", out, groups), layers.conv(f"{name}.conv2", out, out)
        self.shortcut = layers.conv(f"{name}.conv_shortcut", into, out, 1) if into != out else None

    def __call__(self, x: "Float[Array, 'b h w c'] | Enlarged") -> Float[Array, "b h w c2"]:
        y = self.conv1(x, prepare=self.norm1(x, jax.nn.silu))
        shortcut = None if self.shortcut is None else self.shortcut.apply
        return self.conv2(y, prepare=self.norm2(y, jax.nn.silu), residual=x, shortcut=shortcut)


class Downsample(nnx.Module):
    def __init__(self, layers: Layers, name: str, channels: int):
        self.conv = layers.conv(name, channels, channels)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x, stride=2, padding=(0, 1))


class Upsample(nnx.Module):
    def __init__(self, layers: Layers, name: str, channels: int):
        self.conv = layers.conv(name, channels, channels)

    def __call__(self, x: Float[Array, "b h w c"]) -> "Float[Array, 'b 2*h 2*w c'] | Enlarged":
        return self.conv.enlarged(x)


class Attention(nnx.Module):
    def __init__(self, layers: Layers, name: str, channels: int, groups: int):
        self.norm = layers.norm(f"{name}.group_norm", channels, groups)
        self.q, self.k, self.v, self.out = (
            layers.conv(f"{name}.{part}", channels, channels, 1) for part in ("to_q", "to_k", "to_v", "to_out.0")
        )
        self.whole = layers.whole

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        y = self.norm(x)(x)
        q, k, v = (project(y).reshape(b, h * w, c) for project in (self.q, self.k, self.v))
        return self.out(attend(q, k, v, self.whole).reshape(x.shape), residual=x)


def _middle(layers: Layers, name: str, config: KLConfig) -> Iterator[nnx.Module]:
    channels, groups = config.block_out_channels[-1], config.norm_num_groups
    yield Resnet(layers, f"{name}.resnets.0", channels, channels, groups)
    if config.mid_block_add_attention:
        yield Attention(layers, f"{name}.attentions.0", channels, groups)
    yield Resnet(layers, f"{name}.resnets.1", channels, channels, groups)


_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# From the original programs' names (CompVis, Stability AI, Black Forest Labs) to those of diffusers, in this order.
_ORIGINAL = (
    (r"^first_stage_model\.", ""),
    (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.(q|k|v)\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
)
_ORIGINAL_FILE = re.compile(r"^(first_stage_model\.)?(en|de)coder\.(down|up|mid)\.")


def canonical(name: str, levels: int) -> str:
    """The name that diffusers gives a tensor today; `levels` is the number of block_out_channels.

    Older files call the attention's projections query, key, value and proj_attn. The original programs have names of
    their own, and count the decoder's levels from the picture; in the checkpoint of a whole model they begin with
    first_stage_model.
    """
    name = re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{_ATTENTION[m[2]]}.", name)
    original = _ORIGINAL_FILE.match(name)
    for pattern, replacement in _ORIGINAL:
        name = re.sub(pattern, replacement, name)
    if original and original[3] == "up":
        name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", name)
    return name

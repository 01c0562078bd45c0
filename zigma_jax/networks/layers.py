"""Convolutions with their batch norm folded in, and ways to bring a picture to a network's size."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from zigma_jax.networks.weight_file import WeightFile

_EPSILON = 1e-3  # of the batch norms of both networks


class ConvNorm(nnx.Module):
    """A convolution without bias and the batch norm after it, at inference: one convolution with bias.

    Args:
        file: where `conv`.weight (out, in, h, w) and the four tensors of `norm` are taken from.
        window: height and width of the kernel.
        padding: "SAME" (as TensorFlow: an odd rest goes below and right) or "VALID".
        depthwise: every channel is filtered by itself; `conv`.weight is (channels, 1, h, w).
    """

    def __init__(
        self,
        file: WeightFile,
        conv: str,
        norm: str,
        channels: tuple[int, int],
        window: tuple[int, int],
        *,
        stride: int = 1,
        padding: str = "SAME",
        depthwise: bool = False,
    ):
        into, out = channels
        kernel = file.take(f"{conv}.weight", out, 1 if depthwise else into, *window)
        gain, bias, mean, variance = (
            file.take(f"{norm}.{name}", out) for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / np.sqrt(np.maximum(variance, 0).astype(np.float64) + _EPSILON)
        self.kernel = nnx.Param(jnp.asarray((kernel.transpose(2, 3, 1, 0) * scale).astype(np.float32)))
        self.bias = nnx.Param(jnp.asarray((bias - mean * scale).astype(np.float32)))
        self.stride, self.padding, self.depthwise = stride, padding, depthwise

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        if self.depthwise:
            return _depthwise(x, self.kernel[...], self.stride) + self.bias[...]
        strides = (self.stride, self.stride)
        y = jax.lax.conv_general_dilated(
            x, self.kernel[...], strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + self.bias[...]


def _depthwise(x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int) -> Float[Array, "b h2 w2 c"]:
    """ "SAME" depthwise convolution as a sum of shifted pictures: on CPUs many times faster than XLA's own."""
    taps, (height, width) = len(kernel), x.shape[1:3]
    (top, bottom), (left, right) = jax.lax.padtype_to_pads((height, width), (taps, taps), (stride, stride), "SAME")
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows, columns = 1 + (height - 1) // stride * stride, 1 + (width - 1) // stride * stride
    shifted = (
        x[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j, 0] for i, j in np.ndindex(taps, taps)
    )
    return functools.reduce(operator.add, shifted)


def bicubic(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Antialiased bicubic resize as `torch.nn.functional.interpolate(mode="bicubic", antialias=True)`."""
    b, _, _, c = images.shape
    return jax.image.resize(images, (b, size, size, c), "cubic", antialias=True)


def bilinear(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Bilinear resize without antialiasing as `torch.nn.functional.interpolate(mode="bilinear")`."""
    b, _, _, c = images.shape
    return jax.image.resize(images, (b, size, size, c), "linear", antialias=False)


def bilinear_tensorflow1(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Bilinear resize as TensorFlow 1's `resize_bilinear`: pixel i is read at i · h / size, no half-pixel shift."""
    rows, columns = (_two_taps(length, size) for length in images.shape[1:3])
    return jnp.einsum("rh,bhwc,sw->brsc", rows, images, columns, precision="highest")


def _two_taps(length: int, size: int) -> Float[np.ndarray, "size length"]:
    at = np.arange(size, dtype=np.float32) * np.float32(length / size)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, length - 1)
    matrix = np.zeros((size, length), np.float32)
    np.add.at(matrix, (np.arange(size), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(size), high), at - low)
    return matrix

"""Convolutions and pools over time, height and width, as TensorFlow pads them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from zigma_jax.networks.weight_file import WeightFile

_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")


def fold_norm(
    file: WeightFile, norm: str, kernel: Float[np.ndarray, "out into t h w"], epsilon: float
) -> tuple[Float[np.ndarray, "t h w into out"], Float[np.ndarray, " out"]]:
    """Kernel and bias of a convolution without bias and the batch norm after it, at inference."""
    out = len(kernel)
    # TensorFlow's I3D learns no gain, and a file may be without it.
    gain = file.take(f"{norm}.weight", out) if f"{norm}.weight" in file else np.ones(out, np.float32)
    bias, mean, variance = (file.take(f"{norm}.{name}", out) for name in ("bias", "running_mean", "running_var"))
    scale = gain / np.sqrt(np.maximum(variance, 0).astype(np.float64) + epsilon)
    return (kernel.transpose(2, 3, 4, 1, 0) * scale).astype(np.float32), (bias - mean * scale).astype(np.float32)


class ConvNorm3D(nnx.Module):
    """A convolution, the batch norm after it, and ReLU. `file` has `name`.conv3d.weight (out, into, t, h, w)."""

    def __init__(
        self, file: WeightFile, name: str, channels: tuple[int, int], window: int, epsilon: float, stride: int = 1
    ):
        into, out = channels
        kernel = file.take(f"{name}.conv3d.weight", out, into, *(window,) * 3)
        kernel, bias = fold_norm(file, f"{name}.bn", kernel, epsilon)
        self.kernel, self.bias = nnx.Param(jnp.asarray(kernel)), nnx.Param(jnp.asarray(bias))
        self.stride = stride

    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f2 h2 w2 c2"]:
        kernel = self.kernel[...]
        if kernel.shape[:3] == (1, 1, 1):
            return jax.nn.relu(x @ kernel[0, 0, 0] + self.bias[...])
        strides = (self.stride,) * 3
        y = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=_LAYOUT)
        return jax.nn.relu(y + self.bias[...])


def conv_space(x: Float[Array, "b f h w c"], kernel: Float[Array, "1 kh kw c c2"]) -> Float[Array, "b f h w c2"]:
    """A "SAME" convolution of each frame."""
    b, f, h, w, c = x.shape
    y = jax.lax.conv_general_dilated(
        x.reshape(b * f, h, w, c), kernel[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.reshape(b, f, h, w, -1)


def conv_time(
    x: Float[Array, "b f h w c"], kernel: Float[Array, "3 1 1 c c2"], dilation: int
) -> Float[Array, "b f h w c2"]:
    """A "SAME" convolution of each pixel over three frames, `dilation` apart: as products, because on CPUs XLA's own
    dilated convolutions of three axes take many times longer."""
    f = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (dilation, dilation), (0, 0), (0, 0), (0, 0)))
    before, now, after = (padded[:, tap * dilation : tap * dilation + f] @ kernel[tap, 0, 0] for tap in range(3))
    return before + now + after


def max_pool(
    x: Float[Array, "b f h w c"], window: tuple[int, int, int], strides: tuple[int, int, int]
) -> Float[Array, "b f2 h2 w2 c"]:
    """ "SAME" """
    return nnx.max_pool(x, window, strides, "SAME")

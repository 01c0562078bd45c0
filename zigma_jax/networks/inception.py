"""InceptionV3 of December 2015 as the FID uses it (arXiv 1512.00567; TensorFlow's classify_image_graph_def).

It differs from the InceptionV3 of torchvision: 1008 classes, averages that leave the padding out, a maximum in the last
block's pooling branch, other weights. Layers bear the names of pytorch-fid's file.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from zigma_jax.networks.extractor import Network
from zigma_jax.networks.layers import ConvNorm, bilinear, bilinear_tensorflow1
from zigma_jax.networks.weight_file import WeightFile

WHERE = (
    "Give the path of pt_inception-2015-12-05-6726825d.pth as `weights`: it is at "
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)

_SIZE = 299  # pixels
_SPATIAL_CHANNELS = 7


def as_tensorflow(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
    """What the TensorFlow graph does, hence TTUR, guided-diffusion's evaluator, torch-fidelity and torchmetrics."""
    return (bilinear_tensorflow1(images.astype(jnp.float32), _SIZE) - 128) / 128


def as_pytorch_fid(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
    """What pytorch-fid does: half-pixel centres, and 255 is 1."""
    return 2 * bilinear(images.astype(jnp.float32) / 255, _SIZE) - 1


class InceptionV3(Network):
    """Pictures, resized to 299 × 299 by `prepare`, to features.

    Returns
        "pool" (b, 2048): the average over the last feature map, for FID and KID;
        "logits" (b, 1008): without the bias, as every inception score is computed;
        "spatial" (b, 2023): the first 7 channels of Mixed_6d (17 × 17 × 7, flattened), for sFID. In the TensorFlow
        graph this is mixed_6/conv, which guided-diffusion's evaluator takes.
    """

    dim = 2048

    def __init__(self, file: WeightFile, *, prepare: Callable[[Array], Array]):
        conv = _convs(file)
        self.prepare = prepare
        self.stem = nnx.Sequential(
            conv("Conv2d_1a_3x3", 3, 32, 3, stride=2),
            conv("Conv2d_2a_3x3", 32, 32, 3, padding="VALID"),
            conv("Conv2d_2b_3x3", 32, 64, 3),
            _max_pool,
            conv("Conv2d_3b_1x1", 64, 80, 1),
            conv("Conv2d_4a_3x3", 80, 192, 3, padding="VALID"),
            _max_pool,
        )
        self.to_spatial = nnx.Sequential(
            _mixed_a(_convs(file, "Mixed_5b."), 192, 32),
            _mixed_a(_convs(file, "Mixed_5c."), 256, 64),
            _mixed_a(_convs(file, "Mixed_5d."), 288, 64),
            _mixed_b(_convs(file, "Mixed_6a."), 288),
            _mixed_c(_convs(file, "Mixed_6b."), 128),
            _mixed_c(_convs(file, "Mixed_6c."), 160),
            _mixed_c(_convs(file, "Mixed_6d."), 160),
        )
        self.to_pool = nnx.Sequential(
            _mixed_c(_convs(file, "Mixed_6e."), 192),
            _mixed_d(_convs(file, "Mixed_7a.")),
            _mixed_e(_convs(file, "Mixed_7b."), 1280, _average_same),
            _mixed_e(_convs(file, "Mixed_7c."), 2048, _max_same),
        )
        self.kernel = nnx.Param(jnp.asarray(file.take("fc.weight", 1008, self.dim).T))
        file.take("fc.bias", 1008)  # in every file, in no score

    def __call__(self, images: UInt8[Array, "b h w 3"]) -> dict[str, Float[Array, "b ..."]]:
        x = self.to_spatial(self.stem(self.prepare(images)))
        spatial = x[..., :_SPATIAL_CHANNELS].reshape(len(x), -1)
        pool = self.to_pool(x).mean((1, 2))
        return {"pool": pool, "logits": pool @ self.kernel[...], "spatial": spatial}


class _Conv(nnx.Module):
    def __init__(self, conv: ConvNorm):
        self.conv = conv

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return jax.nn.relu(self.conv(x))


class _Parallel(nnx.Module):
    """Several ways through, their channels one after the other."""

    def __init__(self, *ways: Callable[[Array], Array]):
        self.ways = nnx.List(ways)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return jnp.concatenate([way(x) for way in self.ways], axis=-1)


def _convs(file: WeightFile, block: str = "") -> Callable[..., _Conv]:
    """`conv(name, channels in, channels out, window)` within a block; a stride of 2 goes with no padding."""

    def conv(name: str, into: int, out: int, window: int | tuple[int, int], *, stride=1, padding="SAME") -> _Conv:
        window = (window, window) if isinstance(window, int) else window
        padding = "VALID" if stride == 2 else padding
        name = f"{block}{name}"
        return _Conv(ConvNorm(file, f"{name}.conv", f"{name}.bn", (into, out), window, stride=stride, padding=padding))

    return conv


_chain = nnx.Sequential


def _max_pool(x: Array) -> Array:
    return nnx.max_pool(x, (3, 3), (2, 2))


def _max_same(x: Array) -> Array:
    return nnx.max_pool(x, (3, 3), padding="SAME")


def _average_same(x: Array) -> Array:
    return nnx.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _mixed_a(conv, into: int, pool_out: int) -> _Parallel:
    return _Parallel(
        conv("branch1x1", into, 64, 1),
        _chain(conv("branch5x5_1", into, 48, 1), conv("branch5x5_2", 48, 64, 5)),
        _chain(
            conv("branch3x3dbl_1", into, 64, 1),
            conv("branch3x3dbl_2", 64, 96, 3),
            conv("branch3x3dbl_3", 96, 96, 3),
        ),
        _chain(_average_same, conv("branch_pool", into, pool_out, 1)),
    )


def _mixed_b(conv, into: int) -> _Parallel:
    return _Parallel(
        conv("branch3x3", into, 384, 3, stride=2),
        _chain(
            conv("branch3x3dbl_1", into, 64, 1),
            conv("branch3x3dbl_2", 64, 96, 3),
            conv("branch3x3dbl_3", 96, 96, 3, stride=2),
        ),
        _max_pool,
    )


def _mixed_c(conv, width: int) -> _Parallel:
    row, column = (1, 7), (7, 1)
    return _Parallel(
        conv("branch1x1", 768, 192, 1),
        _chain(
            conv("branch7x7_1", 768, width, 1),
            conv("branch7x7_2", width, width, row),
            conv("branch7x7_3", width, 192, column),
        ),
        _chain(
            conv("branch7x7dbl_1", 768, width, 1),
            conv("branch7x7dbl_2", width, width, column),
            conv("branch7x7dbl_3", width, width, row),
            conv("branch7x7dbl_4", width, width, column),
            conv("branch7x7dbl_5", width, 192, row),
        ),
        _chain(_average_same, conv("branch_pool", 768, 192, 1)),
    )


def _mixed_d(conv) -> _Parallel:
    return _Parallel(
        _chain(conv("branch3x3_1", 768, 192, 1), conv("branch3x3_2", 192, 320, 3, stride=2)),
        _chain(
            conv("branch7x7x3_1", 768, 192, 1),
            conv("branch7x7x3_2", 192, 192, (1, 7)),
            conv("branch7x7x3_3", 192, 192, (7, 1)),
            conv("branch7x7x3_4", 192, 192, 3, stride=2),
        ),
        _max_pool,
    )


def _mixed_e(conv, into: int, pool: Callable[[Array], Array]) -> _Parallel:
    row, column = (1, 3), (3, 1)
    return _Parallel(
        conv("branch1x1", into, 320, 1),
        _chain(
            conv("branch3x3_1", into, 384, 1),
            _Parallel(conv("branch3x3_2a", 384, 384, row), conv("branch3x3_2b", 384, 384, column)),
        ),
        _chain(
            conv("branch3x3dbl_1", into, 448, 1),
            conv("branch3x3dbl_2", 448, 384, 3),
            _Parallel(conv("branch3x3dbl_3a", 384, 384, row), conv("branch3x3dbl_3b", 384, 384, column)),
        ),
        _chain(pool, conv("branch_pool", into, 192, 1)),
    )

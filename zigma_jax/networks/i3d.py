"""I3D (arXiv 1705.07750) trained on Kinetics-400, by whose logits FVD compares videos (arXiv 1812.01717).

Both published files are read: `i3d_pretrained_400.pt`, a state dict, and StyleGAN-V's `i3d_torchscript.pt`, of whose
program nothing is run. The padding is TensorFlow's.
"""

import re
import zipfile
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from zigma_jax.errors import DataError
from zigma_jax.networks.extractor import Network
from zigma_jax.networks.layers import bilinear
from zigma_jax.networks.video_layers import ConvNorm3D, max_pool
from zigma_jax.networks.weight_file import WeightFile

WHERE = (
    "Give the path of i3d_torchscript.pt (StyleGAN-V's: https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt) "
    "or of i3d_pretrained_400.pt as `weights`"
)
PUBLISHED = {"bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"}
"""SHA-256 of the published file by which FVD is defined, i3d_torchscript.pt."""
LEAST_FRAMES = 9  # fewer leave nothing for the last average over time

_SIZE = 224  # pixels
# Where a program says it: a class of batch norms, or a call in a program without classes.
_EPSILONS = (
    r"(?s)class BatchNorm3d\(.*?\n  eps : Final\[float\] = ([0-9.e+-]+)",
    r"batch_norm\([^;:]*?, ([0-9.]+(?:e-[0-9]+)?), (?:True|False)\)",
)
_PROGRAM = 2**22  # bytes of a file of a program that are looked at
# Channels in, and of the branches: 1 × 1; reduced and 3 × 3; reduced and 3 × 3; pooled.
_MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


class I3D(Network):
    """Videos of at least 9 frames, resized to 224 × 224 bilinearly, to features.

    Returns "logits" (b, 400), of Kinetics' actions, the average over time; "pool", the same, because they are what FVD
    compares; "features" (b, 1024), the average before the logits.
    """

    dim = 400
    of_videos = True

    def __init__(self, file: WeightFile, epsilon: float = 1e-5):
        self.stem = nnx.List(
            [
                ConvNorm3D(file, "Conv3d_1a_7x7", (3, 64), 7, epsilon, stride=2),
                ConvNorm3D(file, "Conv3d_2b_1x1", (64, 64), 1, epsilon),
                ConvNorm3D(file, "Conv3d_2c_3x3", (64, 192), 3, epsilon),
            ]
        )
        self.mixed = nnx.List([_Mixed(file, name, channels, epsilon) for name, channels in _MIXED.items()])
        self.kernel = nnx.Param(jnp.asarray(file.take("logits.conv3d.weight", 400, 1024, 1, 1, 1)[:, :, 0, 0, 0].T))
        self.bias = nnx.Param(jnp.asarray(file.take("logits.conv3d.bias", 400)))

    def __call__(self, images: UInt8[Array, "b f h w 3"]) -> dict[str, Float[Array, "b ..."]]:
        b, f, _, _, _ = images.shape
        resized = bilinear(images.reshape(b * f, *images.shape[2:]).astype(jnp.float32), _SIZE)
        return self.forward(2 * resized.reshape(b, f, _SIZE, _SIZE, 3) / 255 - 1)

    def forward(self, x: Float[Array, "b f 224 224 3"]) -> dict[str, Float[Array, "b ..."]]:
        """The same of its own input, in [-1, 1]."""
        if x.shape[1] < LEAST_FRAMES:
            raise DataError(f"videos of {x.shape[1]} frames: I3D takes {LEAST_FRAMES} or more")
        first, second, third = self.stem
        x = max_pool(first(x), (1, 3, 3), (1, 2, 2))
        x = max_pool(third(second(x)), (1, 3, 3), (1, 2, 2))
        for name, block in zip(_MIXED, self.mixed, strict=True):
            if name == "Mixed_4b":
                x = max_pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = max_pool(x, (2, 2, 2), (2, 2, 2))
            x = block(x)
        features = nnx.avg_pool(x, (2, 7, 7), (1, 1, 1), "VALID")
        logits = (features @ self.kernel[...] + self.bias[...]).mean((1, 2, 3))
        return {"logits": logits, "pool": logits, "features": features.mean((1, 2, 3))}


class _Mixed(nnx.Module):
    """Four ways through, their channels one after the other."""

    def __init__(self, file: WeightFile, name: str, channels: tuple[int, ...], epsilon: float):
        into, *branches = channels
        one, reduced3, three, reduced5, five, pooled = branches
        self.one = ConvNorm3D(file, f"{name}.b0", (into, one), 1, epsilon)
        self.reduce = nnx.List(
            [
                ConvNorm3D(file, f"{name}.b1a", (into, reduced3), 1, epsilon),
                ConvNorm3D(file, f"{name}.b2a", (into, reduced5), 1, epsilon),
            ]
        )
        self.filter = nnx.List(
            [
                ConvNorm3D(file, f"{name}.b1b", (reduced3, three), 3, epsilon),
                ConvNorm3D(file, f"{name}.b2b", (reduced5, five), 3, epsilon),
            ]
        )
        self.pooled = ConvNorm3D(file, f"{name}.b3b", (into, pooled), 1, epsilon)

    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c2"]:
        ways = [self.one(x)]
        ways += [filtered(reduced(x)) for reduced, filtered in zip(self.reduce, self.filter, strict=True)]
        ways.append(self.pooled(max_pool(x, (3, 3, 3), (1, 1, 1))))
        return jnp.concatenate(ways, -1)


def epsilon_of(path: Path) -> float:
    """The epsilon of the batch norms of a file's network.

    A TorchScript file says it in its program, which is looked at as text; the program that `i3d_pretrained_400.pt` was
    made for has PyTorch's own, 1e-5.
    """
    if not zipfile.is_zipfile(path):
        return 1e-5
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
        texts = [archive.open(name).read(_PROGRAM).decode("utf-8", "replace") for name in names]
    for pattern in _EPSILONS:
        if found := next(filter(None, (re.search(pattern, text) for text in texts)), None):
            return float(found[1])
    return 1e-5


def rename(name: str, path: Path) -> str:
    """A tensor's name as in `i3d_pretrained_400.pt`, from those that other files of the same network give it.

    Known are lower-case names, `branch_1.0` for `b1a`, `batch3d` for `bn`, `conv3d_0c_1x1` for `logits`, and names that
    begin with those of the modules around the network.
    """
    name = re.sub(r"(?i)(^|\.)(conv3d_0c_1x1|logits)\.", r"\1logits.", name)
    name = re.sub(r"(?i)(^|\.)conv3d_(\d)([a-z])_(\d)x(\d)\.", r"\1Conv3d_\2\3_\4x\5.", name)
    name = re.sub(r"(?i)(^|\.)mixed_(\d)([a-z])\.", r"\1Mixed_\2\3.", name)
    name = re.sub(r"(?i)\.branch_?([03])\.(?:[01]\.)?", lambda m: f".b{m[1]}." if m[1] == "0" else ".b3b.", name)
    name = re.sub(r"(?i)\.branch_?([12])\.([01])\.", lambda m: f".b{m[1]}{'ab'[int(m[2])]}.", name)
    name = re.sub(r"\.(batch3d|batch_norm|batchnorm|batch_norm3d)\.", ".bn.", name)
    name = re.sub(r"\.(conv_3d|conv)\.(weight|bias)$", r".conv3d.\2", name)
    return re.sub(r"^.*?(?=(logits|Conv3d_\d|Mixed_\d)[\w]*\.)", "", name)

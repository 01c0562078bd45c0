"""Networks that are used as they were published, and not trained here; one architecture a file.

`load_text_encoder(place)`: captions to token states. `load_network(name, weights)`: pictures to features.

| name | network | "pool" | besides |
|---|---|---|---|
| `effnet` | EfficientNet-Lite0, weights in a package | 1280 | "logits" 1000 |
| `inception` | InceptionV3 of FID, pictures prepared as in TensorFlow | 2048 | "logits" 1008, "spatial" 2023 |
| `inception-pytorch-fid` | the same, pictures prepared as in pytorch-fid | 2048 | "logits" 1008, "spatial" 2023 |
| `dinov2-vits14`, `-vitb14`, `-vitl14` | DINOv2 | 384, 768, 1024 | |
| `dinov2-vits14-reg`, … | DINOv2 with registers | 384, 768, 1024 | |
| `i3d` | of videos: I3D on Kinetics-400, as FVD takes it | 400 | "logits" 400, "features" 1024 |
| `transnetv2` | of videos: TransNet V2, weights in a package | 1024 | |
"""

import hashlib
import os
from functools import partial
from pathlib import Path

from zigma_jax.errors import ConfigError
from zigma_jax.networks import dinov2, effnet, i3d, inception, transnet
from zigma_jax.networks.autoencoder import Autoencoder, autoencoder_geometry, load_autoencoder
from zigma_jax.networks.extractor import Extractor
from zigma_jax.networks.sources import MissingWeightsError, find_weights
from zigma_jax.networks.text_encoder import TextEncoder, load_text_encoder, stated_width

__all__ = [
    "FVD_NETWORK",
    "NETWORKS",
    "Autoencoder",
    "Extractor",
    "TextEncoder",
    "autoencoder_geometry",
    "find_weights",
    "load_autoencoder",
    "load_network",
    "load_text_encoder",
    "stated_width",
]

FVD_NETWORK = "i3d-fvd"
"""The name of I3D with the published weights by which FVD is defined."""

# name: (what builds it from a file, where a package has one or None, what to do where there is none)
NETWORKS = {
    "effnet": (effnet.EfficientNetLite0, effnet.packaged_weights, effnet.WHERE),
    "inception": (partial(inception.InceptionV3, prepare=inception.as_tensorflow), None, inception.WHERE),
    "inception-pytorch-fid": (partial(inception.InceptionV3, prepare=inception.as_pytorch_fid), None, inception.WHERE),
} | {
    f"dinov2-{size}14{'-reg' * registers}": (
        partial(dinov2.DinoV2, size=size, registers=registers),
        None,
        dinov2.where(size, registers),
    )
    for size in dinov2.SIZES
    for registers in (False, True)
}
NETWORKS |= {
    "i3d": (i3d.I3D, None, i3d.WHERE),
    "transnetv2": (transnet.TransNetV2, transnet.packaged_weights, transnet.WHERE),
}


def load_network(name: str, weights: str | os.PathLike[str] | None = None) -> Extractor:
    """The feature extractor of that name.

    Args:
        name: one of `NETWORKS`.
        weights: a file of weights, `.safetensors` or PyTorch's (of which nothing is ever executed); a directory that
            holds one, as on the Hugging Face hub; or a place there, `hf://owner/repository[/path][@revision]`. None:
            those that a package brings, which only `effnet` and `transnetv2` have.

    Of "i3d", the extractor is called `FVD_NETWORK` if the file is the very one by which FVD is defined, and "i3d"
    otherwise, so that only that is called FVD.

    Raises:
        ConfigError: unknown name.
        MissingWeightsError, HubError, MissingPackageError: as `find_weights`; the message says where to get the
            weights.
        WeightsError: a damaged file, or one that lacks tensors, has others, or has some of another shape or dtype
            or with values that are not finite (named one by one).
        TorchFileError: a damaged or unsafe PyTorch file.
    """
    if name not in NETWORKS:
        raise ConfigError(f"network {name!r}: there are {', '.join(NETWORKS)}")
    build, packaged, where = NETWORKS[name]
    place = weights if weights is not None or packaged is None else packaged()
    if place is None:
        raise MissingWeightsError(f"network {name!r} needs a file of weights. {where}")
    found = find_weights(place, where=where, flag=f"weights of {name!r}")
    file = found.open(rename=i3d.rename if name == "i3d" else None)
    network = i3d.I3D(file, i3d.epsilon_of(found.files()[0])) if name == "i3d" else build(file)
    file.check()
    if name == "i3d" and _sha256(found.files()[0]) in i3d.PUBLISHED:
        name = FVD_NETWORK
    return Extractor.of(name, network, file.fingerprint(), found.place)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

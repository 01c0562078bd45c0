"""Wrote tests/goldens/autoencoders.npz and photographs.jpg: what other programs make of the weights in seeded.py.

    python tests/networks/make_autoencoder_goldens.py DIRECTORY_OF_TAEF2 DIRECTORY_OF_PICTURES

ran with PyTorch 2.13.0, diffusers 0.42.1 and pillow on a CPU in float32. The pictures are those of scikit-image 0.26,
all in the public domain: astronaut, hubble_deep_field (NASA), rocket (SpaceX), and by CC0 chelsea (Stefan van der
Walt), coffee (Rachel Michetti) and retina (Mikael Häggström).
"""
# pyright: reportMissingImports=false, reportArgumentType=false

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image, ImageOps
from seeded import seeded
from torch import nn

GOLDENS = Path(__file__).parents[1] / "goldens"
PICTURES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg")
SD = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
SD3 = SD | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}


def fill(network: nn.Module) -> list[str]:
    """Seeded weights; returns lines of name and shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict({name: torch.from_numpy(value) for name, value in seeded(shapes).items()})
    return [" ".join([name, *map(str, shape)]) for name, shape in shapes.items()]


def last(tensor: torch.Tensor) -> np.ndarray:
    return np.moveaxis(tensor.numpy(), 1, -1)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def large(name: str, config: dict) -> dict[str, np.ndarray]:
    network = AutoencoderKL(**config).eval()
    lines = fill(network)
    x, z = draw(0, 1, 3, 32, 32).tanh(), draw(1, 1, network.config["latent_channels"], 4, 4)
    posterior = network.encode(x).latent_dist
    mean, logvar = (
        network.encoder(x).chunk(2, 1)
        if network.quant_conv is None
        else (network.quant_conv(network.encoder(x)).chunk(2, 1))
    )
    assert torch.equal(mean, posterior.mean)
    found = {"x": x, "mean": mean, "logvar": logvar, "z": z, "y": network.decode(z).sample}
    return {f"{name}/names": np.asarray(lines)} | {f"{name}/{key}": last(value) for key, value in found.items()}


def tiny() -> dict[str, np.ndarray]:
    """As diffusers has it: pictures in [-1, 1]."""
    network = AutoencoderTiny().eval()
    lines = fill(network)
    x, z = draw(2, 2, 3, 32, 32).tanh(), 2 * draw(3, 2, 4, 4, 4)
    found = {"x": x, "mean": network.encode(x).latents, "z": z, "y": network.decode(z).sample}
    return {"taesd/names": np.asarray(lines)} | {f"taesd/{key}": last(value) for key, value in found.items()}


class Block(nn.Module):
    def __init__(self, pooled: bool):
        super().__init__()
        convs = [layer for _ in range(3) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())]
        self.conv = nn.Sequential(*convs[:-1])
        if pooled:
            narrow = nn.Conv2d(256, 64, 1, bias=False)
            self.pool = nn.Sequential(nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256), nn.ReLU(), narrow)

    def forward(self, x):
        x = x + self.pool(x) if hasattr(self, "pool") else x
        return torch.relu(x + self.conv(x))


class Bounded(nn.Module):
    def forward(self, z):
        return 3 * torch.tanh(z / 3)


def taef2(directory: Path) -> tuple[nn.Module, nn.Module]:
    """The published TAEF2, whose pictures are in [0, 1]."""
    encoder = [nn.Conv2d(3, 64, 3, padding=1), Block(False)]
    decoder = [Bounded(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    for level in range(3):
        encoder += [nn.Conv2d(64, 64, 3, 2, 1, bias=False), *(Block(level == 2) for _ in range(3))]
        decoder += [*(Block(level == 0) for _ in range(3)), nn.Upsample(scale_factor=2)]
        decoder += [nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    encoder += [nn.Conv2d(64, 32, 3, padding=1)]
    decoder += [Block(False), nn.Conv2d(64, 3, 3, padding=1)]
    halves = []
    for half, layers in (("encoder", encoder), ("decoder", decoder)):
        network = nn.Sequential(*layers).eval()
        network.load_state_dict(torch.load(directory / f"taef2_{half}.pth", weights_only=True))
        halves.append(network.float())
    return halves[0], halves[1]


def photographs(directory: Path) -> np.ndarray:
    """Six pictures of 256 × 256 side by side, written and read back."""
    pictures = [ImageOps.fit(Image.open(directory / name).convert("RGB"), (256, 256)) for name in PICTURES]
    strip = np.concatenate([np.asarray(picture) for picture in pictures], axis=1)
    Image.fromarray(strip).save(GOLDENS / "photographs.jpg", quality=92)
    return np.stack(np.split(np.asarray(Image.open(GOLDENS / "photographs.jpg")), 6, axis=1))


@torch.no_grad()
def main(weights: str, pictures: str) -> None:
    images = torch.from_numpy(photographs(Path(pictures))).permute(0, 3, 1, 2) / 255
    encoder, decoder = taef2(Path(weights))
    z = encoder(images)
    errors = (decoder(z).clip(0, 1) - images).square().mean((1, 2, 3))
    psnr = -10 * torch.log10(errors)
    print("PSNR", psnr)
    found = {"taef2/psnr": psnr.numpy(), "taef2/mean": last(z[:2, :, ::4, ::4])}
    np.savez_compressed(GOLDENS / "autoencoders.npz", **found, **tiny(), **large("sd", SD), **large("sd3", SD3))


if __name__ == "__main__":
    main(*sys.argv[1:])

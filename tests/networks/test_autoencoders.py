"""The autoencoders against their PyTorch originals; where their files lie; pictures of all sizes; what does not fit."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.networks.seeded import seeded
from zigma_jax.networks import autoencoder_geometry, load_autoencoder

GOLDENS = Path(__file__).parents[1] / "goldens"
SMALL = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 256,
}
NO_QUANT = SMALL | {
    "block_out_channels": [32, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 16,
    "layers_per_block": 2,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "latents_mean": None,
    "latents_std": None,
}
CONFIGS = {"vae_small": SMALL, "vae_noquant16": NO_QUANT}


def golden(case: str) -> dict[str, np.ndarray]:
    """Pictures and latents of the golden file, channels last."""
    with np.load(GOLDENS / f"{case}.npz") as file:
        return {name: np.moveaxis(file[name], 1, -1) for name in ("x", "mean", "logvar", "z", "y")}


def weights(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / f"{case}.npz") as file:
        shapes = {
            str(n): tuple(map(int, re.findall(r"\d+", s))) for n, s in zip(file["names"], file["shapes"], strict=True)
        }
    return seeded(shapes)


def write(directory: Path, config: dict | None, tensors: dict[str, np.ndarray]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    save_file(
        {name: np.ascontiguousarray(t) for name, t in tensors.items()},
        directory / "diffusion_pytorch_model.safetensors",
    )
    return directory


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("small"), SMALL, weights("vae_small"))


def error(found, expected) -> float:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    return float(np.abs(found - expected).max() / np.sqrt(np.square(expected).mean()))


@pytest.mark.parametrize("case", CONFIGS)
def test_answers_of_diffusers(case, tmp_path):
    place, answers = write(tmp_path, CONFIGS[case], weights(case)), golden(case)
    ae = load_autoencoder(place)
    mean, logvar = ae.encode(answers["x"])
    y = ae.decode(ae.normalize(answers["z"]))
    for name, found in (("mean", mean), ("logvar", logvar), ("y", y)):
        assert error(found, answers[name]) < 2e-5, name  # measured: 7e-6
    assert (ae.factor, ae.channels) == autoencoder_geometry(place) == autoencoder_geometry(f"kl:{place}")
    assert ae.name == "kl"

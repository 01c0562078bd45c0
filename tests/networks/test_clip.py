"""Both towers of CLIP against transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.networks.captions import CAPTIONS
from tests.networks.random_weights import random_weights
from zigma_jax.errors import ConfigError, WeightsError
from zigma_jax.networks.clip import load_clip

GOLDENS = Path(__file__).parents[1] / "goldens"
GOLDEN, TEXT = dict(np.load(GOLDENS / "clip.npz")), dict(np.load(GOLDENS / "text.npz"))


def write_clip(folder: Path) -> Path:
    """The directory of the golden's CLIP."""
    lines = (line.split() for line in GOLDEN["names"])
    weights = random_weights({name: tuple(map(int, shape)) for name, *shape in lines})
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(str(GOLDEN["config"]))
    (folder / "vocab.json").write_text(str(TEXT["clip/vocab"]))
    (folder / "merges.txt").write_text(str(TEXT["clip/merges"]))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_cosines(place):
    clip = load_clip(place)
    found = np.asarray(clip.cosines(GOLDEN["images"], CAPTIONS[:6]))
    np.testing.assert_allclose(found, GOLDEN["cosines"], atol=1e-5)
    larger = GOLDEN["images"].repeat(2, 1).repeat(2, 2)  # comes back to about the same pixels
    assert np.abs(clip.cosines(larger, CAPTIONS[:6]) - found).max() < 0.2


def test_what_does_not_fit(place, tmp_path):
    clip = load_clip(place)
    with pytest.raises(ConfigError, match=r"images have shape \(6, 24, 24, 3\) .* captions, which are 5"):
        clip.cosines(GOLDEN["images"], CAPTIONS[:5])
    with pytest.raises(ConfigError, match="dtype float32"):
        clip.cosines(GOLDEN["images"].astype(np.float32), CAPTIONS[:6])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="model_type = 'bert'"):
        load_clip(tmp_path)

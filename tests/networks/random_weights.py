"""Weights and pictures out of nothing, the same on every machine: goldens hold only what networks made of them."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor that keeps activations near 1, from its name: norms near the identity, the rest scaled by fan-in."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return np.exp(draw / 4)
    if len(shape) == 1 and name.endswith(("weight", "lambda1")):
        return 1 + draw / 8
    if len(shape) < 2 or "position" in name or "token" in name:
        return draw / 4
    return draw * np.float32(np.sqrt(2 / np.prod(shape[1:])))


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {
        name: random_tensor(name, shape) for name, shape in shapes.items() if not name.endswith("num_batches_tracked")
    }


def avatars() -> np.ndarray:
    """Four faces of the avatars data set, uint8 (4, 64, 64, 3)."""
    strip = np.asarray(Image.open(Path(__file__).parents[1] / "goldens" / "avatars.png"))
    return np.stack(np.split(strip, 4, axis=1))


def random_images(*shape: int) -> np.ndarray:
    """Waves and noise, uint8 (b, h, w, 3)."""
    rng = np.random.RandomState(sum(shape))
    b, h, w, c = shape
    rows, columns = np.meshgrid(np.arange(h) / h, np.arange(w) / w, indexing="ij")
    waves = rng.uniform(2, 20, (b, c, 2, 1, 1))
    pictures = np.sin(waves[:, :, 0] * rows + waves[:, :, 1] * columns) + rng.normal(0, 0.3, (b, c, h, w))
    return np.clip(127.5 + 90 * np.moveaxis(pictures, 1, -1), 0, 255).astype(np.uint8)

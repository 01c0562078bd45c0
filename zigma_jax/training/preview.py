"""Pictures of samples: a grid as PNG, a video as GIF or WebP."""

import io
import math
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from zigma_jax.files import write_atomically
from zigma_jax.training.decoding import to_bytes

Samples = (
    UInt8[Array | np.ndarray, "n h w c"]
    | UInt8[Array | np.ndarray, "n f h w c"]
    | Float[Array | np.ndarray, "n h w c"]
    | Float[Array | np.ndarray, "n f h w c"]
)

GAP = 2  # pixels between tiles
BACKGROUND = 255


def make_grid(
    samples: Samples,
    columns: int | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Tiles pictures, or videos as rows of their frames: bytes, or numbers in [-1, 1] of 1 or 3 channels.

    columns: the default makes the number of columns and rows as equal as it can; of videos, a row is one
    sample's frames. Values beyond [-1, 1] are clipped; a pixel that is not finite is magenta, so that a
    broken sample looks broken.
    Raises ValueError for no samples, and for other channels: latents have to be decoded first.
    """
    tiles = _as_bytes(np.asarray(samples))
    if tiles.ndim == 5:
        columns = columns or tiles.shape[1]
        tiles = tiles.reshape(-1, *tiles.shape[2:])
    n, h, w, _ = tiles.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    grid = np.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, 3), BACKGROUND, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = GAP + i // columns * (h + GAP), GAP + i % columns * (w + GAP)
        grid[top : top + h, left : left + w] = tile
    return grid


def save_png(path: str | Path, grid: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes a picture as PNG; `path` is there whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def save_animation(path: str | Path, videos: Samples, frames_per_second: float = 8.0) -> None:
    """Writes videos, playing side by side in a grid, as .gif or .webp by the ending of `path`.

    Raises as `animation`.
    """
    write_atomically(path, animation(videos, Path(path).suffix.lower(), frames_per_second))


def animation(videos: Samples, suffix: str, frames_per_second: float = 8.0) -> bytes:
    """The file, .gif or .webp, of videos (n, f, h, w, c), bytes or in [-1, 1], playing side by side in a grid.

    Raises ValueError for another ending, and as `make_grid`.
    """
    formats = {".gif": "GIF", ".webp": "WEBP"}
    if suffix not in formats:
        raise ValueError(f"{suffix!r}: an animation ends in {' or '.join(formats)}")
    videos = np.asarray(videos)
    frames = [Image.fromarray(make_grid(videos[:, i])) for i in range(videos.shape[1])]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format=formats[suffix],
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / frames_per_second),
        loop=0,
    )
    return buffer.getvalue()


def _as_bytes(samples: np.ndarray) -> UInt8[np.ndarray, "*n 3"]:
    """Bytes as they are, and numbers as `to_bytes` has them; grey as RGB. Raises as `make_grid`."""
    if samples.size == 0 or samples.shape[-1] not in (1, 3):
        raise ValueError(f"samples of shape {samples.shape}: need one at least, and 1 or 3 channels (decode latents)")
    if samples.dtype == np.uint8:
        return np.broadcast_to(samples, (*samples.shape[:-1], 3))
    return np.asarray(to_bytes(samples)[0])

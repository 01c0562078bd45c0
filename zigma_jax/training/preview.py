"""Pictures of samples: a grid as PNG, a video as GIF or WebP."""

import io
import math
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from zigma_jax.files import AnyPath, write_atomically
from zigma_jax.training.decoding import to_bytes

Samples = (
    UInt8[Array | np.ndarray, "n h w c"]
    | UInt8[Array | np.ndarray, "n f h w c"]
    | Float[Array | np.ndarray, "n h w c"]
    | Float[Array | np.ndarray, "n f h w c"]
)

GAP = 2  # pixels between tiles
BACKGROUND = 255
CAPTION_WIDTH, CAPTION_SIZE, CAPTION_LINES = 160, 11, 4  # of a picture at least; of letters; at most. Pixels


def make_grid(
    samples: Samples,
    columns: int | None = None,
    captions: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Tiles pictures, or videos as rows of their frames: bytes, or numbers in [-1, 1] of 1 or 3 channels.

    columns: the default makes the number of columns and rows as equal as it can; of videos, a row is one
    sample's frames. captions: a text for below each picture; small pictures are then enlarged, so that there is room
    for it. Values beyond [-1, 1] are clipped; a pixel that is not finite is magenta, so that a
    broken sample looks broken.
    Raises ValueError for no samples, and for other channels: latents have to be decoded first.
    """
    tiles = _as_bytes(np.asarray(samples))
    if tiles.ndim == 5:
        columns = columns or tiles.shape[1]
        tiles = tiles.reshape(-1, *tiles.shape[2:])
    if captions is not None:
        tiles = np.stack([captioned(tile, text) for tile, text in zip(tiles, captions, strict=True)])
    n, h, w, _ = tiles.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    grid = np.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, 3), BACKGROUND, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = GAP + i // columns * (h + GAP), GAP + i % columns * (w + GAP)
        grid[top : top + h, left : left + w] = tile
    return grid


def captioned(picture: UInt8[np.ndarray, "h w 3"], text: str) -> UInt8[np.ndarray, "H W 3"]:
    """A picture with a text below it, in a few lines. Small pictures are enlarged by a whole number."""
    times = -(-CAPTION_WIDTH // picture.shape[1])
    picture = picture.repeat(times, axis=0).repeat(times, axis=1)
    font = ImageFont.load_default(CAPTION_SIZE)
    height = round(1.25 * CAPTION_SIZE)
    below = Image.new("RGB", (picture.shape[1], CAPTION_LINES * height + GAP), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(below)
    for number, line in enumerate(_wrapped(text, picture.shape[1] - 2 * GAP, font)):
        draw.text((GAP, GAP + number * height), line, fill=(0, 0, 0), font=font)
    return np.concatenate([picture, np.asarray(below)])


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The text in lines that fit, the last one ending in … if it is too long."""
    lines, line = [], ""
    # What no font draws on one line, such as tabs and control characters, is space.
    words = "".join(character if character.isprintable() else " " for character in text[:1000]).split()
    for word in words:
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    lines = [*lines, line]
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], f"{lines[CAPTION_LINES - 1]} …"]
    return [_cut(line, width, font) for line in lines]


def _cut(line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while len(line) > 1 and font.getlength(line) > width:
        line = f"{line[:-2]}…"
    return line


def save_png(path: str | AnyPath, grid: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes a picture as PNG; `path` is there whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def save_animation(path: str | AnyPath, videos: Samples, frames_per_second: float = 8.0) -> None:
    """Writes videos, playing side by side in a grid, as .gif or .webp by the ending of `path`.

    Raises as `animation`.
    """
    write_atomically(path, animation(videos, PurePosixPath(path).suffix.lower(), frames_per_second))


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

"""From a picture's bytes to RGB, whatever is in them."""

import codecs
import functools
import io
import re

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from zigma_jax.data.pictures import exif, levels
from zigma_jax.errors import DataError

# Formats of pixels alone. Pillow knows more, among them EPS, for which it runs another program.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")


def decode(encoded: bytes) -> Image.Image:
    """Decodes a picture of any mode that Pillow reads to RGB, upright (its EXIF orientation applied).

    Transparency is composited on white, palettes are looked up, and of an animation the first frame is taken.
    Pixels of more than 8 bits are scaled to 8 by the range that `levels.to_bytes` finds.

    Raises:
        DataError: no picture (and what it is instead), or one whose range of values is unknown.
        Exception: what Pillow raises for damaged and truncated pictures and for too large ones.
    """
    image, orientation = open_picture(encoded)
    layout = str(image.tile[0].args) if image.tile else ""
    transparent = _transparent_level(image, layout)
    image.load()
    if image.mode == "RGB" and ";16" in layout and np.asarray(image).max() < 16:  # 12 bits of 16, or 8
        image = _lift(image, encoded)
    else:
        image = _rgb(image, transparent)
    return exif.upright(image, orientation)


def upright_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) of what `decode` returns, by the picture's header. Raises as `decode`."""
    image, orientation = open_picture(encoded)
    return (image.width, image.height) if orientation >= 5 else (image.height, image.width)


def open_picture(encoded: bytes) -> tuple[ImageFile, int]:
    """The picture, of which no pixel is read yet, and its orientation. Raises as `decode`."""
    encoded, hidden = exif.hide_exif(encoded)
    try:
        image = Image.open(io.BytesIO(encoded), formats=_known_formats())
    except UnidentifiedImageError:
        raise DataError(f"no picture that can be read, but {describe(encoded)}") from None
    # Pillow itself turns a TIFF as it loads it, because there the orientation is a field of the format.
    return image, 1 if image.format == "TIFF" else exif.orientation(hidden, image.info)


def describe(content: bytes) -> str:
    """What a file is that should be a picture or an array, in words."""
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not content:
        return "an empty file"
    if not any(content[:1024]):
        return "nothing but zero bytes"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the file (run `git lfs pull`)"
    if re.match(rb"<(!doctype html|html|head|body|!--)", start):
        return "an HTML page (a download that failed, or needs a login)"
    if content.startswith(b"\x93NUMPY"):
        return "a single array (.npy)"
    if content.startswith(b"PK"):
        return "a zip archive, damaged or of something else"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content[:1024])
    except UnicodeDecodeError:
        text = "\0"
    return "text" if "\0" not in text else "bytes of a damaged or unknown format"


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _rgb(image: Image.Image, transparent: int | tuple[int, ...] | None) -> Image.Image:
    if image.mode == "F":
        raise DataError("its pixels are floating-point numbers of unknown range")
    if levels.is_deep(image):
        deep = levels.deep_levels(image)
        pixels = np.where(deep == transparent, np.uint8(255), levels.to_bytes(deep, image))
        return Image.fromarray(pixels).convert("RGB")
    if transparent is not None:
        image.info["transparency"] = transparent
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _lift(image: Image.Image, encoded: bytes) -> Image.Image:
    """RGB of 3 x 16 bits whose upper bytes are all but empty."""
    deep = np.asarray(image).astype(np.int64) << 8 | levels.lower_bytes(encoded, _known_formats())
    return Image.fromarray(levels.to_bytes(deep, image))


def _transparent_level(image: Image.Image, layout: str) -> int | tuple[int, ...] | None:
    """The level that a PNG of greys or colours declares transparent, on the scale of the pixels that Pillow makes."""
    level = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("L", "RGB", "I", "I;16"):
        return None
    if isinstance(level, tuple):  # Pillow keeps the upper half of 16 bits, but compares it with all of them
        return tuple(channel >> 8 for channel in level) if ";16" in layout else level
    if isinstance(level, int) and image.mode == "L":  # it spreads 2 and 4 bits over 8, but not the level
        return level * (85 if "L;2" in layout else 17 if "L;4" in layout else 1)
    return level

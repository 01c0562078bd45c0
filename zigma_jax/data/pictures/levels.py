"""Pixels of more than 8 bits as 8: where their range comes from."""

import io
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from zigma_jax.errors import DataError

_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE, _SAMPLE_FORMAT = 258, 262, 281, 339  # fields of TIFF
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_OTHER_END = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B"}


def is_deep(image: Image.Image) -> bool:
    """Whether its pixels are one integer of more than 8 bits each."""
    return image.mode == "I" or image.mode.startswith("I;16")


def deep_levels(image: Image.Image) -> Int[np.ndarray, "h w"]:
    """The integers of such an image. Raises DataError for negative ones."""
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0:
        if image.format != "TIFF" or _field(image, _SAMPLE_FORMAT, _UNSIGNED) != _UNSIGNED:
            raise DataError("its pixels are negative integers, of unknown range")
        levels &= 0xFFFFFFFF  # Pillow takes unsigned numbers of 32 bits for signed ones
    return levels


def to_bytes(levels: Int[np.ndarray, "*n"], image: Image.Image) -> UInt8[np.ndarray, "*n"]:
    """The upper 8 bits of levels from `image`, by the range that its format states, or that its levels have.

    What is stored in 16 or 32 bits is often a picture of fewer: of 8 (an array of integers that was saved as it is)
    or of 12 (cameras, scanners, microscopes). So where the format states nothing, the range is the smallest of 8, 12,
    16 and 32 bits that holds the largest level. Levels that are all multiples of 256 or of 257 are 8 bits spread over
    16, however dark.

    Raises:
        DataError: integers between 16 and 24 bits, whose range nobody can know.
    """
    most = int(levels.max())
    bits = _stated_bits(image)
    if bits is None or most >= 1 << bits:
        if most >= 1 << 16:
            bits = 32
        elif most >= 1 << 8 and not ((levels % 256).any() and (levels % 257).any()):
            bits = 16
        else:
            bits = 8 if most < 1 << 8 else 12 if most < 1 << 12 else 16
    if bits == 32 and most < 1 << 24:
        raise DataError(f"its pixels are integers up to {most}, of unknown range")
    if bits > 8:
        levels = levels >> (bits - 8)
    pixels = levels.astype(np.uint8)
    inverted = image.format == "TIFF" and _field(image, _PHOTOMETRIC, None) == _WHITE_IS_ZERO
    return ~pixels if inverted else pixels


def lower_bytes(encoded: bytes, formats: tuple[str, ...]) -> UInt8[np.ndarray, "h w 3"]:
    """The lower bytes of a picture of 3 x 16 bits, of which Pillow keeps the upper ones only.

    It drops them as it unpacks what the file holds; told that the bytes come in the other order, it drops the others.
    """
    image = Image.open(io.BytesIO(encoded), formats=formats)
    image.tile = [tile._replace(args=_other_end(tile.args)) for tile in image.tile]
    return np.asarray(image)


def _other_end(args: tuple | str | None) -> tuple | str | None:
    if isinstance(args, tuple):
        return (_other_end(args[0]), *args[1:])
    return f"{args[:-4]}{_OTHER_END[args[-4:]]}" if args else args


def _stated_bits(image: Image.Image) -> int | None:
    if image.format in ("PPM", "JPEG2000"):  # they state their largest level, and Pillow scales by it to 16 bits
        return 16
    if image.format != "TIFF":
        return None
    if most := _field(image, _MAX_SAMPLE_VALUE, 0):
        return max(8, int(most).bit_length())
    bits = _field(image, _BITS_PER_SAMPLE, 16)
    return None if bits in (16, 32) else bits


def _field(image: Image.Image, tag: int, default: int | None) -> int | None:
    fields: dict[int, Any] = getattr(image, "tag_v2", {})
    value = fields.get(tag, default)
    return next(iter(value), default) if isinstance(value, tuple) else value

"""From an RGB picture to a model's pixels: ADM's crop and resize, and floats in [-1, 1]."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_WHOLE = 16  # times the target's area: up to here a picture is resized whole, and cut afterwards

CROP = "center_crop 2"
"""What encoded pictures were cut by: to be changed whenever `decode` or `center_crop` gives other pixels."""


def center_crop(image: Image.Image, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The largest centred part with the target's aspect ratio, at `size` = (h, w) pixels: what ADM trains on.

    Halves by area average while the picture is at least twice too large, then resizes bicubically so that
    it just covers the target, then cuts the centre. A picture smaller than the target is enlarged.
    Of a very long and narrow one only the centre is resized, so that 1 x 8,000 pixels do not become 256 x 2,048,000.
    Source: `center_crop_arr` of guided-diffusion's image_datasets.py, extended from squares to h x w.
    """
    h, w = size
    while image.width >= 2 * w and image.height >= 2 * h:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(w / image.width, h / image.height)
    covering = (max(w, round(image.width * scale)), max(h, round(image.height * scale)))
    left, top = (covering[0] - w) // 2, (covering[1] - h) // 2
    part = (left, top, left + w, top + h)
    if covering[0] * covering[1] > _WHOLE * w * h:
        x, y = image.width / covering[0], image.height / covering[1]
        box = (part[0] * x, part[1] * y, min(part[2] * x, image.width), min(part[3] * y, image.height))
        return np.asarray(image.resize((w, h), Image.Resampling.BICUBIC, box=box))
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.BICUBIC)
    return np.asarray(image.crop(part))


def to_float(pixels: UInt8[np.ndarray, "*b h w 3"]) -> Float[np.ndarray, "*b h w 3"]:
    """0 … 255 -> float32 in [-1, 1], to the bit as `zigma_jax.training.samples.pictures` has it on a device."""
    return (2 * pixels.astype(np.float32) - np.float32(255)) * np.float32(1 / 255)


def to_uint8(pixels: Float[np.ndarray, "*b h w 3"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """[-1, 1] -> 0 … 255, rounded, with what lies outside clipped: the inverse of `to_float`."""
    return np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)

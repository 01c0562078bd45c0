"""From a picture's bytes to pixels: RGB, ADM's crop and resize, [-1, 1]."""

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

CROP = "center_crop 1"
"""What encoded pictures were cut by: to be changed whenever `decode` or `center_crop` gives other pixels."""


def decode(encoded: bytes) -> Image.Image:
    """Decodes a picture of any mode that Pillow reads to RGB, upright (its EXIF orientation applied).

    Transparency is composited on white, grey levels of 16 bits are scaled to 8, palettes are looked up,
    and of an animation the first frame is taken.
    Raises what Pillow raises for damaged bytes, and ValueError for floating-point pixels, whose range is
    unknown.
    """
    image = Image.open(io.BytesIO(encoded))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers of unknown range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def center_crop(image: Image.Image, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The largest centred part with the target's aspect ratio, at `size` = (h, w) pixels: what ADM trains on.

    Halves by area average while the picture is at least twice too large, then resizes bicubically so that
    it just covers the target, then cuts the centre. A picture smaller than the target is enlarged.
    Source: `center_crop_arr` of guided-diffusion's image_datasets.py, extended from squares to h x w.
    """
    h, w = size
    while image.width >= 2 * w and image.height >= 2 * h:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(w / image.width, h / image.height)
    covering = (max(w, round(image.width * scale)), max(h, round(image.height * scale)))
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.BICUBIC)
    left, top = (image.width - w) // 2, (image.height - h) // 2
    return np.asarray(image.crop((left, top, left + w, top + h)))


def to_float(pixels: UInt8[np.ndarray, "*b h w 3"]) -> Float[np.ndarray, "*b h w 3"]:
    """0 … 255 -> float32 in [-1, 1]."""
    return pixels.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)


def to_uint8(pixels: Float[np.ndarray, "*b h w 3"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """[-1, 1] -> 0 … 255, rounded, with what lies outside clipped: the inverse of `to_float`."""
    return np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)

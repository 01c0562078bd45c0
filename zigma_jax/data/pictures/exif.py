"""Which way up a photograph is: the one field of EXIF that changes pixels, read by itself.

A library that parses all of EXIF fails on a field that it does not understand, and the photograph is lost for the
sake of, say, its resolution. Here nothing is read but the orientation, and whatever is broken means upright.
"""

import re
import struct
from collections.abc import Mapping
from typing import Any

from PIL import Image

_TAG = 0x0112
_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # EXIF's integer types, as `struct` calls them
_PREFIX = b"Exif\0\0"

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image as it is to be shown, from the way that it is stored."""
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def orientation(exif: bytes | None, info: Mapping[Any, Any]) -> int:
    """EXIF's orientation, 1 … 8; 1 (upright) where there is none, or none that can be read.

    exif: the bytes that `hide_exif` returned. info: of the opened image, for the formats that keep EXIF there, and
    for XMP, which may say it too.
    """
    found = _in_exif(exif or info.get("exif") or _in_text(info.get("Raw profile type exif")))
    if found is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
        text = xmp.decode("latin-1") if isinstance(xmp, bytes) else str(xmp)
        match = re.search(r"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])\b", text)
        found = int(match[1]) if match else None
    return found if found in _TRANSPOSE else 1


def hide_exif(encoded: bytes) -> tuple[bytes, bytes | None]:
    """A JPEG in which decoders find no EXIF, and the EXIF; other bytes as they are, and None.

    Pillow parses the whole EXIF of a JPEG as it opens it, in search of a resolution.
    """
    if not encoded.startswith(b"\xff\xd8"):
        return encoded, None
    content, found, start = bytearray(encoded), None, 2
    while start + 4 <= len(content) and content[start] == 0xFF and content[start + 1] != 0xDA:  # there pixels begin
        if content[start + 1] == 0xFF:  # padding
            start += 1
            continue
        body, end = start + 4, start + 2 + int.from_bytes(content[start + 2 : start + 4])
        if content[start + 1] == 0xE1 and content.startswith(_PREFIX, body):
            found = found or encoded[body + len(_PREFIX) : end]
            content[body : body + len(_PREFIX)] = b"hidden"
        start = end
    return bytes(content), found


def _in_exif(exif: bytes | None) -> int | None:
    """The orientation in the first directory of a TIFF, which is what EXIF is."""
    if not exif:
        return None
    exif = exif.removeprefix(_PREFIX)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for start in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(f"{order}HHI", exif, start)
            if tag == _TAG and kind in _FORMATS and values == 1:
                return struct.unpack_from(order + _FORMATS[kind], exif, start + 8)[0]
    except struct.error:  # it ends before it should
        pass
    return None


def _in_text(profile: Any) -> bytes | None:
    """The EXIF that ImageMagick writes into a PNG as text: three lines of heading, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join(profile.split("\n")[3:]))
    except (AttributeError, ValueError):
        return None

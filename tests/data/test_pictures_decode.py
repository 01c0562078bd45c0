"""From bytes to RGB: every kind of picture with its right value, and what is none called by its name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from zigma_jax.data.pictures.decode import decode, upright_size
from zigma_jax.errors import DataError


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_transparency_is_composited_on_white():
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    got = np.asarray(decode(encode(Image.fromarray(pixels))))
    np.testing.assert_array_equal(got, [[[200, 0, 0], [255, 255, 255], [127, 127, 127]]])
    got = np.asarray(decode(encode(Image.fromarray(pixels).convert("LA"))))
    np.testing.assert_array_equal(got[0, 1], [255, 255, 255])


def test_a_palette_with_a_transparent_entry_is_composited_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    got = np.asarray(decode(encode(image, transparency=1)))
    np.testing.assert_array_equal(got, [[[255, 0, 0], [255, 255, 255]]])


def test_sixteen_bit_grey_is_scaled_not_clipped():
    levels = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    got = np.asarray(decode(encode(Image.fromarray(levels))))
    np.testing.assert_array_equal(got[0], np.repeat([[0], [0], [1], [128], [255]], 3, axis=1))


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("P", "GIF")]
)
def test_other_modes_become_rgb(mode, kind):
    got = decode(encode(Image.new(mode, (3, 2)), kind))
    assert (got.mode, got.size) == ("RGB", (3, 2))


def test_a_photograph_taken_sideways_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    image = Image.new("RGB", (8, 4))
    assert decode(encode(image, "JPEG", exif=exif)).size == (4, 8)


LEVELS = np.array([[0, 17, 128, 255]], np.int64)


def tiff(levels: np.ndarray, fields: dict[int, int] | None = None, bits: tuple[int, ...] = (16,)) -> bytes:
    """An uncompressed little-endian TIFF of raw bytes, for layouts that Pillow reads and does not write."""
    data, (height, width) = levels.tobytes(), levels.shape[:2]
    values = {256: width, 257: height, 259: 1, 262: 1, 273: 512, 277: len(bits), 278: height, 279: len(data)}
    if len(bits) == 1:
        values[258] = bits[0]
    values |= fields or {}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()]
    if len(bits) > 1:
        entries.append(struct.pack("<HHII", 258, 3, len(bits), 480))
    entries.sort(key=lambda entry: int.from_bytes(entry[:2], "little"))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    return head.ljust(480, b"\0") + struct.pack(f"<{len(bits)}H", *bits).ljust(32, b"\0") + data


def png(levels: np.ndarray, depth: int, colour: int, transparent: tuple[int, ...]) -> bytes:
    """A PNG with a transparent level. colour: 0 for greys, 2 for RGB; levels (h, w) or (h, w, 3)."""
    height, width = levels.shape[:2]
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in levels]
    elif depth == 8:
        rows = [row.astype(np.uint8).tobytes() for row in levels]
    else:
        bits = ["".join(format(int(level), f"0{depth}b") for level in row) for row in levels]
        rows = [int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8)) for row in bits]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + chunk(b"IEND", b"")
    )


def greys(encoded: bytes) -> list[int]:
    pixels = np.asarray(decode(encoded))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].ravel().tolist()


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (encode(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"), [0, 17, 128, 255]),
        (encode(Image.fromarray((LEVELS * 257).astype(np.int32)), "TIFF"), [0, 17, 128, 255]),
        (tiff((LEVELS * 16843009).astype(np.uint32), bits=(32,)), [0, 17, 128, 255]),
        (encode(Image.fromarray((LEVELS * 257).astype(np.uint16)), "TIFF"), [0, 17, 128, 255]),
        (encode(Image.fromarray((LEVELS * 257).astype(np.uint16))), [0, 17, 128, 255]),
        (encode(Image.fromarray((LEVELS * 16 + 3).astype(np.uint16))), [0, 17, 128, 255]),  # 12 bits in 16
        (encode(Image.fromarray(LEVELS.astype(np.uint16))), [0, 17, 128, 255]),  # 8 bits in 16
        (encode(Image.fromarray(np.array([[0, 2560]], np.uint16))), [0, 10]),  # 16 bits, dark, as they show
        (encode(Image.fromarray(np.array([[0, 2570]], np.uint16))), [0, 10]),
        (encode(Image.fromarray(np.zeros((1, 2), np.uint16))), [0, 0]),
        (tiff(np.array([[0, 100]], np.uint16), {281: 4095}), [0, 6]),  # 12 bits, and the file says so
        (tiff(np.array([[0x1234]], ">u2").view(np.uint8)[:, :2], {256: 1}, (12,)), [0x12]),
        (tiff((LEVELS * 257).astype(np.uint16), {262: 0}), [255, 238, 127, 0]),  # white is 0
        (b"P5 4 1 4095\n" + (LEVELS * 16).astype(">u2").tobytes(), [0, 17, 128, 255]),
        (b"P5 2 1 65535\n" + np.array([0, 1000], ">u2").tobytes(), [0, 3]),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_deep_greys_by_the_range_that_they_are_in(encoded, expected):
    assert greys(encoded) == expected


@pytest.mark.parametrize("scale", [257, 16, 1])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_deep_colours_by_the_range_that_they_are_in(kind, scale):
    pixels = np.array([[[0, 17, 128], [255, 1, 2]]])
    if kind == "png":
        encoded = png(pixels * scale, 16, 2, (9, 9, 9))
    else:
        encoded = tiff((pixels * scale).astype(np.uint16), {262: 2}, (16, 16, 16))
    np.testing.assert_array_equal(np.asarray(decode(encoded)), pixels)


@pytest.mark.parametrize(
    ("depth", "levels", "transparent", "expected"),
    [
        (1, [0, 1, 0], 0, [255, 255, 255]),
        (1, [0, 1, 0], 1, [0, 255, 0]),
        (2, [0, 1, 2], 1, [0, 255, 170]),
        (4, [0, 1, 15], 1, [0, 255, 255]),
        (8, [0, 17, 128], 17, [0, 255, 128]),
        (16, [0, 17 * 257, 128 * 257], 17 * 257, [0, 255, 128]),
        (16, [0, 17 * 257, 128 * 257], 0, [255, 17, 128]),
    ],
)
def test_a_transparent_grey_is_white_at_every_depth(depth, levels, transparent, expected):
    assert greys(png(np.array([levels]), depth, 0, (transparent,))) == expected


@pytest.mark.parametrize(("depth", "scale"), [(8, 1), (16, 257)])
def test_a_transparent_colour_is_white_at_every_depth(depth, scale):
    pixels = np.array([[[10, 20, 30], [10, 20, 200]]])
    got = np.asarray(decode(png(pixels * scale, depth, 2, tuple((pixels[0, 0] * scale).tolist()))))
    np.testing.assert_array_equal(got, [[[255] * 3, [10, 20, 200]]])


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF", (0, 255, 255)),
        (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", (0, 255, 255)),  # Adobe's, which are stored inverted
        (Image.new("YCbCr", (8, 8), (76, 85, 255)), "TIFF", (254, 0, 0)),
        (Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF", (255, 255, 255)),
        (Image.new("1", (8, 8), 1), "TIFF", (255, 255, 255)),
        (Image.new("1", (8, 8), 1), "BMP", (255, 255, 255)),
        (Image.new("L", (8, 8), 99), "JPEG", (99, 99, 99)),
        (Image.new("LA", (8, 8), (0, 0)), "TIFF", (255, 255, 255)),
        (Image.new("PA", (8, 8), (0, 0)), "TIFF", (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 0)), "WEBP", (255, 255, 255)),
        (Image.new("RGBX", (8, 8), (1, 2, 3, 0)), "TIFF", (1, 2, 3)),
    ],
    ids=lambda value: f"{value.mode}" if isinstance(value, Image.Image) else "",
)
def test_colour_spaces(image, kind, expected):
    got = np.asarray(decode(encode(image, kind)))
    assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_one(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black", "red")]
    options = {"lossless": True} if kind == "WEBP" else {}
    assert greys(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)) == [255] * 16


CORNERS = np.array([[10, 20], [30, 40], [50, 60]], np.uint8)


def exif(orientation: int, kind: int = 3, order: str = "<", extra: tuple[int, int, int, bytes] | None = None) -> bytes:
    """EXIF with an orientation, and perhaps one other field: tag, type, count, value."""
    value = struct.pack(order + ("H2x" if kind == 3 else "I"), orientation)
    entries = sorted([(0x0112, kind, 1, value)] + ([extra] if extra else []))
    packed = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "IH", 8, len(entries)) + packed + bytes(4)


def photograph(kind: str, content: bytes) -> bytes:
    image = Image.fromarray(np.repeat(np.repeat(CORNERS, 16, 0), 16, 1)).convert("RGB")
    return encode(image, kind, exif=(b"Exif\0\0" if kind == "JPEG" else b"") + content, quality=95)


def corners(encoded: bytes) -> list[list[int]]:
    return (np.asarray(decode(encoded))[8::16, 8::16, 0].astype(int) + 5).__floordiv__(10).tolist()


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[1, 2], [3, 4], [5, 6]]),
        (2, [[2, 1], [4, 3], [6, 5]]),
        (3, [[6, 5], [4, 3], [2, 1]]),
        (4, [[5, 6], [3, 4], [1, 2]]),
        (5, [[1, 3, 5], [2, 4, 6]]),
        (6, [[5, 3, 1], [6, 4, 2]]),
        (7, [[6, 4, 2], [5, 3, 1]]),
        (8, [[2, 4, 6], [1, 3, 5]]),
        (0, [[1, 2], [3, 4], [5, 6]]),
        (9, [[1, 2], [3, 4], [5, 6]]),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation(kind, orientation, expected):
    if kind == "TIFF":
        encoded = encode(Image.open(io.BytesIO(photograph("PNG", exif(1)))), "TIFF", tiffinfo={274: orientation})
    else:
        encoded = photograph(kind, exif(orientation))
    assert corners(encoded) == expected
    assert upright_size(encoded) == (16 * len(expected), 16 * len(expected[0]))


@pytest.mark.parametrize(
    ("content", "turned"),
    [
        (exif(6, order=">"), True),
        (exif(6, kind=4), True),
        (exif(6, extra=(0x011A, 5, 1, b"\xff\xff\0\0")), True),  # a resolution beyond the end
        (exif(6, extra=(0x011A, 2, 4, b"abc\0")), True),  # as text
        (exif(6, extra=(0x011A, 9, 1, b"\xfb\xff\xff\xff")), True),  # negative
        (exif(6, extra=(0x011A, 11, 1, b"\0\0\xc0\x7f")), True),  # not a number
        (exif(6, extra=(0x0131, 99, 1, b"abcd")), True),  # of no known type
        (exif(6, extra=(0x0131, 2, 2**32 - 1, b"\x0a\0\0\0")), True),
        (exif(6, extra=(0x8769, 4, 1, b"\xff\xff\0\0")), True),  # a directory that is not there
        (exif(6, extra=(0x8769, 4, 1, b"\x08\0\0\0")), True),  # and one in itself
        (exif(6)[:17], False),
        (exif(6)[:9], False),
        (exif(6, kind=2), False),
        (b"II*\0\xff\xff\xff\xff", False),
        (b"nonsense", False),
        (b"", False),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_costs_no_photograph(kind, content, turned):
    encoded = photograph(kind, content)
    assert corners(encoded) == ([[5, 3, 1], [6, 4, 2]] if turned else [[1, 2], [3, 4], [5, 6]])


def test_an_orientation_in_xmp():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image = Image.open(io.BytesIO(photograph("PNG", exif(1))))
    assert corners(encode(image, "JPEG", xmp=xmp, quality=95)) == [[5, 3, 1], [6, 4, 2]]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_picture_is_unreadable(kind, share):
    whole = encode(NOISE, kind)
    with pytest.raises(Exception, match=r"."):  # which one is the decoder's choice
        decode(whole[: int(share * len(whole))])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (bytes(5000), "nothing but zero bytes"),
        (b"\n<!DOCTYPE html><html>not found", "an HTML page"),
        (b"<html><body>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        ("Grüße".encode(), "but text"),
        (b"\x80\x81\x82" * 100, "damaged or unknown"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "but text"),  # it would run another program
        (encode(Image.new("F", (2, 2)), "TIFF"), "unknown range"),
        (encode(Image.fromarray(np.array([[-5, 5]], np.int32)), "TIFF"), "negative"),
        (encode(Image.fromarray(np.array([[5, 70000]], np.int32)), "TIFF"), "up to 70000, of unknown range"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(content, message):
    with pytest.raises(DataError, match=message):
        decode(content)


def test_a_decompression_bomb_is_refused_by_its_header():
    bomb = b"P5 20000 20000 255\n" + bytes(100)
    with pytest.raises(Image.DecompressionBombError, match="400000000 pixels"):
        decode(bomb)

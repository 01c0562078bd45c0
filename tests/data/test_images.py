"""Decoding, and ADM's crop and resize against values worked out by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from zigma_jax.data import images


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def grey(rows: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=-1))


def crop(rows: list[list[int]], size: tuple[int, int]) -> list[list[int]]:
    return images.center_crop(grey(rows), size)[..., 0].tolist()


def test_twice_too_large_is_averaged_over_boxes_of_two():
    rows = [[0, 4, 100, 100], [8, 4, 100, 100], [20, 20, 0, 200], [20, 60, 40, 0]]
    assert crop(rows, (2, 2)) == [[4, 100], [30, 60]]


def test_the_longer_side_is_cut_in_the_middle():
    rows = [[10, 10, 20, 20, 30, 30, 40, 40]] * 4
    assert crop(rows, (2, 2)) == [[20, 30], [20, 30]]


def test_halving_rounds_sizes_down_and_the_cut_starts_at_the_smaller_offset():
    # 5 rows x 7 columns halve to 2 x 3 (not to 3 x 4), and of 3 columns the cut takes the first two.
    rows = [[0, 0, 70, 70, 140, 140, 210]] * 5
    halved = grey(rows).resize((3, 2), Image.Resampling.BOX)
    assert crop(rows, (2, 2)) == np.asarray(halved)[:, :2, 0].tolist()


def test_what_is_left_after_halving_is_bicubic():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 36, 3), dtype=np.uint8))
    halved = image.resize((18, 25), Image.Resampling.BOX)  # 36 >= 2 * 12, then 18 < 2 * 12
    resized = np.asarray(halved.resize((12, 17), Image.Resampling.BICUBIC))  # round(25 * 12 / 18) = 17
    np.testing.assert_array_equal(images.center_crop(image, (12, 12)), resized[2:14])


def test_a_wide_target_keeps_its_shape_and_the_picture_its_proportions():
    rows = [[row] * 8 for row in (0, 0, 10, 10, 20, 20, 30, 30)]
    assert crop(rows, (2, 4)) == [[10] * 4, [20] * 4]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (31, 33), (64, 17), (200, 3)])
@pytest.mark.parametrize("size", [(16, 16), (5, 12), (12, 5)])
def test_every_shape_comes_out_at_the_size_asked_for(shape, size):
    assert images.center_crop(Image.new("RGB", shape[::-1]), size).shape == (*size, 3)


def test_transparency_is_composited_on_white():
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    got = np.asarray(images.decode(encode(Image.fromarray(pixels))))
    np.testing.assert_array_equal(got, [[[200, 0, 0], [255, 255, 255], [127, 127, 127]]])
    got = np.asarray(images.decode(encode(Image.fromarray(pixels).convert("LA"))))
    np.testing.assert_array_equal(got[0, 1], [255, 255, 255])


def test_a_palette_with_a_transparent_entry_is_composited_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    got = np.asarray(images.decode(encode(image, transparency=1)))
    np.testing.assert_array_equal(got, [[[255, 0, 0], [255, 255, 255]]])


def test_sixteen_bit_grey_is_scaled_not_clipped():
    levels = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    got = np.asarray(images.decode(encode(Image.fromarray(levels))))
    np.testing.assert_array_equal(got[0], np.repeat([[0], [0], [1], [128], [255]], 3, axis=1))


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("P", "GIF")]
)
def test_other_modes_become_rgb(mode, kind):
    got = images.decode(encode(Image.new(mode, (3, 2)), kind))
    assert (got.mode, got.size) == ("RGB", (3, 2))


def test_a_photograph_taken_sideways_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    image = Image.new("RGB", (8, 4))
    assert images.decode(encode(image, "JPEG", exif=exif)).size == (4, 8)


def test_damaged_bytes_raise():
    whole = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)), "JPEG")
    with pytest.raises(OSError, match="truncated"):
        images.decode(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="cannot identify"):
        images.decode(b"no picture")
    with pytest.raises(ValueError, match="unknown range"):
        images.decode(encode(Image.new("F", (2, 2)), "TIFF"))


def test_float_and_back_is_the_identity_on_every_level():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    floats = images.to_float(levels)
    assert floats.dtype == np.float32
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(images.to_uint8(floats), levels)

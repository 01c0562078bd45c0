"""ADM's crop and resize against values worked out by hand."""

import time

import numpy as np
import pytest
from PIL import Image

from zigma_jax.data.pictures.pixels import center_crop, to_float, to_uint8


def grey(rows: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=-1))


def crop(rows: list[list[int]], size: tuple[int, int]) -> list[list[int]]:
    return center_crop(grey(rows), size)[..., 0].tolist()


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
    np.testing.assert_array_equal(center_crop(image, (12, 12)), resized[2:14])


def test_a_wide_target_keeps_its_shape_and_the_picture_its_proportions():
    rows = [[row] * 8 for row in (0, 0, 10, 10, 20, 20, 30, 30)]
    assert crop(rows, (2, 4)) == [[10] * 4, [20] * 4]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (31, 33), (64, 17), (200, 3)])
@pytest.mark.parametrize("size", [(16, 16), (5, 12), (12, 5)])
def test_every_shape_comes_out_at_the_size_asked_for(shape, size):
    assert center_crop(Image.new("RGB", shape[::-1]), size).shape == (*size, 3)


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (3, 100), (100, 7)])
@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_of_a_narrow_picture_the_centre_is_what_resizing_all_of_it_gives(shape, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    h, w = size
    while image.width >= 2 * w and image.height >= 2 * h:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(w / image.width, h / image.height)
    whole = (max(w, round(image.width * scale)), max(h, round(image.height * scale)))
    left, top = (whole[0] - w) // 2, (whole[1] - h) // 2
    expected = image.resize(whole, Image.Resampling.BICUBIC).crop((left, top, left + w, top + h))
    got = center_crop(image, size)
    assert np.abs(got.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("shape", [(1, 8000), (8000, 1), (1, 1_000_000)])
def test_a_very_narrow_picture_takes_no_time(shape):
    start = time.process_time()
    assert center_crop(Image.new("RGB", shape), (256, 256)).shape == (256, 256, 3)
    assert time.process_time() - start < 0.5  # resized whole, 5 s and more


def test_float_and_back_is_the_identity_on_every_level():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    floats = to_float(levels)
    assert floats.dtype == np.float32
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(floats), levels)

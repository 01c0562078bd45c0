"""Grids of samples: every pixel in its place, and files whole or not there."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from zigma_jax.training import preview
from zigma_jax.training.decoding import NOT_FINITE


def tile(grid, row, column, h, w):
    top, left = preview.GAP + row * (h + preview.GAP), preview.GAP + column * (w + preview.GAP)
    return grid[top : top + h, left : left + w]


@pytest.mark.parametrize(("n", "rows", "columns"), [(1, 1, 1), (4, 2, 2), (5, 2, 3), (6, 2, 3), (7, 3, 3), (16, 4, 4)])
def test_grid_is_near_square_and_keeps_the_order(n, rows, columns):
    bytes_in = np.random.default_rng(0).integers(0, 256, (n, 3, 5, 3), dtype=np.uint8)
    grid = preview.make_grid(bytes_in.astype(np.float32) / 127.5 - 1)
    assert grid.shape == (rows * 5 + 2, columns * 7 + 2, 3)
    for i in range(n):
        np.testing.assert_array_equal(tile(grid, i // columns, i % columns, 3, 5), bytes_in[i])


def test_bfloat16_on_the_device_grey_and_clipping():
    samples = jnp.stack([jnp.full((2, 2, 1), value, jnp.bfloat16) for value in (-7.0, 0.0, 1.5)])
    grid = preview.make_grid(samples, columns=3)
    assert [tile(grid, 0, i, 2, 2).max() for i in range(3)] == [0, 128, 255]
    assert (tile(grid, 0, 1, 2, 2) == 128).all()


def test_pixels_that_are_not_finite_are_seen():
    samples = np.zeros((1, 2, 2, 3), np.float32)
    samples[0, 0, 1, 2] = np.nan
    picture = tile(preview.make_grid(samples), 0, 0, 2, 2)
    assert tuple(picture[0, 1]) == NOT_FINITE
    assert (picture[1] == 128).all()


def test_a_video_is_a_row_of_its_frames():
    videos = np.linspace(-1, 1, 2 * 3, dtype=np.float32).reshape(2, 3, 1, 1, 1) * np.ones((2, 3, 4, 4, 3), np.float32)
    grid = preview.make_grid(videos)
    assert grid.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    assert [int(tile(grid, i // 3, i % 3, 4, 4).mean()) for i in range(6)] == [0, 51, 102, 153, 204, 255]


ODD = ["", "a red door", "w" * 500, "two\nlines\tand\0", "דלת אדומה 红门 🚪", "\ud800", "word " * 2000, "\u2028\x85"]


def test_captions_stand_below_their_pictures():
    """Whatever they hold: every tile is as large, and the picture in it is the sample, enlarged."""
    samples = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    grid = preview.make_grid(samples, captions=ODD)
    side, height = 160, grid.shape[0] // 3 - preview.GAP
    for i, sample in enumerate(samples):
        found = tile(grid, i // 3, i % 3, height, side)
        np.testing.assert_array_equal(found[:side], sample.repeat(20, 0).repeat(20, 1))
        below = found[side:]
        assert (below.min() < 128) == (ODD[i] not in ("", "\ud800", "\u2028\x85")), repr(ODD[i])
        assert (below[:, -1] == preview.BACKGROUND).all()  # words end before the picture does
    large = preview.make_grid(np.zeros((1, 200, 240, 3), np.uint8), captions=["a red door"])
    assert large.shape[1] == 240 + 2 * preview.GAP  # not enlarged
    with pytest.raises(ValueError, match="shorter"):
        preview.make_grid(samples, captions=["too few"])


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 4, 4, 4)])
def test_latents_and_nothing_are_refused(shape):
    with pytest.raises(ValueError, match=r"samples of shape \("):
        preview.make_grid(np.zeros(shape, np.float32))


def test_png_comes_back_and_nothing_else_is_left(tmp_path):
    grid = preview.make_grid(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32))
    for _ in range(2):  # the second replaces the first
        preview.save_png(tmp_path / "deep" / "grid.png", grid)
    with Image.open(tmp_path / "deep" / "grid.png") as image:
        np.testing.assert_array_equal(np.asarray(image), grid)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["grid.png"]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animation_plays_every_frame(tmp_path, suffix):
    videos = np.random.default_rng(0).uniform(-1, 1, (2, 5, 8, 8, 3)).astype(np.float32)
    preview.save_animation(tmp_path / f"video{suffix}", videos)
    with Image.open(tmp_path / f"video{suffix}") as image:
        assert getattr(image, "n_frames", 1) == 5
        assert image.size == (22, 12)


def test_animation_of_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.gif or \.webp"):
        preview.save_animation(tmp_path / "video.mp4", np.zeros((1, 2, 4, 4, 3), np.float32))

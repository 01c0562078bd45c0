import numpy as np
import pytest
from PIL import Image

from zigma_jax.data.images import center_crop, to_float
from zigma_jax.data.read_pictures import read_pictures

SHAPE = (8, 8, 3)


def test_pictures_of_a_directory_in_order_of_name(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 12, 3), np.uint8)
    for name, picture in zip("ba", pixels, strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    samples, labels = read_pictures(tmp_path, SHAPE)
    np.testing.assert_array_equal(samples, [to_float(center_crop(Image.fromarray(p), (8, 8))) for p in pixels[::-1]])
    assert labels is None


def test_what_the_sample_program_wrote(tmp_path):
    """The exact samples, not the pictures of them, nor the grid."""
    Image.new("RGB", (30, 30)).save(tmp_path / "grid.png")
    expected = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", samples=expected, labels=np.array([4, 5, 6]))
    for path in (tmp_path, tmp_path / "samples.npz"):
        samples, labels = read_pictures(path, SHAPE)
        np.testing.assert_array_equal(samples, expected)
        assert labels is not None
        assert labels.tolist() == [4, 5, 6]


def test_what_is_neither_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there are no pictures in it"):
        read_pictures(tmp_path, SHAPE)
    with pytest.raises(ValueError, match=r"nowhere: neither a directory of pictures nor an \.npz"):
        read_pictures(tmp_path / "nowhere", SHAPE)
    np.savez(tmp_path / "a.npz", samples=np.zeros((3, 9, 9, 3)))
    with pytest.raises(ValueError, match=r"samples of shape \(3, 9, 9, 3\), where \(n, 8, 8, 3\) are wanted"):
        read_pictures(tmp_path / "a.npz", SHAPE)
    np.savez(tmp_path / "b.npz", noise=np.zeros((3, 8, 8, 3)))
    with pytest.raises(ValueError, match="there is no array `samples`, but noise"):
        read_pictures(tmp_path / "b.npz", SHAPE)
    Image.new("RGB", (30, 30)).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"and \(2, 8, 8, 3\) is wanted; give an \.npz"):
        read_pictures(tmp_path, (2, *SHAPE))

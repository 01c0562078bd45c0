"""Sets of pictures: every one once, as bytes, in any batches; what cannot be measured is refused before it is read."""

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import picture, write
from zigma_jax import processes
from zigma_jax.data.pictures.pixels import to_float
from zigma_jax.data.pictures.sets import of_dataset, of_files
from zigma_jax.data.pipeline import DataConfig, one_pass, open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), np.uint8)


def everything(pictures, batch_size):
    batches = list(pictures.batches(batch_size))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    return np.concatenate(batches)


@pytest.mark.parametrize("batch_size", [2, 7])
@pytest.mark.parametrize("kind", ["directory", "floats", "bytes"])
def test_every_picture_once(tmp_path, kind, batch_size):
    if kind == "directory":  # all the way down, in the order of their names
        (tmp_path / "b").mkdir()
        for name, pixels in zip(["a.png", "b/0.png", "b/1.PNG", "c.png", "d.png"], PIXELS, strict=True):
            Image.fromarray(pixels).save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("no picture")
        path = tmp_path
    else:  # what the sample program writes, and what guided-diffusion's does
        path = tmp_path if kind == "floats" else tmp_path / "any.npz"
        if kind == "floats":
            np.savez(tmp_path / "samples.npz", samples=to_float(PIXELS))
        else:
            np.savez(path, arr_0=PIXELS)
        Image.new("RGB", (30, 30)).save(tmp_path / "grid.png")
    for limit in (None, 3):
        pictures = of_files(path, limit=limit)
        assert (pictures.count, pictures.size) == (limit or 5, (8, 6))
        np.testing.assert_array_equal(everything(pictures, batch_size), PIXELS[:limit])
    with pytest.raises(ValueError, match="there are 5 pictures, and 6 are asked for"):
        of_files(path, limit=6)


def test_pictures_of_different_sizes(tmp_path):
    """Are refused by their headers alone, or brought to the size that is given."""
    write(tmp_path, {"a.png": picture(10), "b.png": picture(20, (16, 16)), "c.png": picture(30)[:50]})
    with pytest.raises(ValueError, match=r"a.png is 8 x 8, .*b.png is 16 x 16 pixels.*--image_size"):
        of_files(tmp_path)
    pictures = of_files(tmp_path, (4, 4), limit=2)
    np.testing.assert_array_equal(everything(pictures, 2)[:, 0, 0, 0], [10, 20])
    with pytest.raises(ValueError, match=r"c.png: cannot be read"):
        everything(of_files(tmp_path, (4, 4)), 3)


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("", {}, "there are no pictures in it"),
        ("nowhere", {}, "neither a directory of pictures nor an .npz"),
        ("nowhere.npz", {}, "there is no such file"),
        ("a.npz", {"noise": np.zeros((2, 8, 8, 3))}, "there is no array `samples`, but noise"),
        ("a.npz", {"samples": np.zeros((2, 8, 8, 4))}, r"of shape \(2, 8, 8, 4\), where pictures are"),
        ("a.npz", {"samples": np.zeros((0, 8, 8, 3))}, r"of shape \(0, 8, 8, 3\)"),
        (
            "a.npz",
            {"samples": np.full((2, 8, 8, 3), 128.0)},
            r"floats must be finite and in \[-1, 1\], and bytes uint8",
        ),
        ("a.npz", {"samples": np.full((2, 8, 8, 3), np.nan)}, "floats must be finite"),
    ],
)
def test_refused(tmp_path, name, arrays, message):
    if arrays:
        np.savez(tmp_path / name, **arrays)
    with pytest.raises(ValueError, match=message):
        of_files(tmp_path / name)


def test_an_array_of_another_size(tmp_path):
    np.savez(tmp_path / "a.npz", samples=PIXELS)
    with pytest.raises(ValueError, match=r"pictures of \(8, 6\) pixels, where \(8, 8\) are wanted"):
        of_files(tmp_path / "a.npz", (8, 8))


def test_what_is_no_picture(tmp_path):
    write(tmp_path, {"a.png": "not one"})
    with pytest.raises(ValueError, match=r"a.png: no picture that can be read"):
        of_files(tmp_path)


def test_a_data_set_is_not_mirrored(data_dir):
    config = DataConfig("avatars/tiny", data_dir, image_size=8, flip=True)
    expected = np.concatenate([batch["image"] for batch in one_pass(config, batch_size=64)])
    info = open_source(config).info
    pictures = of_dataset(config, info)
    assert (pictures.count, pictures.size) == (64, (8, 8))
    assert pictures.about == {"dataset": "avatars/tiny/2.0.0", "split": "train", "pixels": "8 x 8"}
    np.testing.assert_array_equal(everything(pictures, 48), expected)
    np.testing.assert_array_equal(pictures.first(9), expected[:9])
    part = of_dataset(config, info, limit=10)
    np.testing.assert_array_equal(everything(part, 4), expected[:10])
    assert part.about["first"] == "10"  # so that its features are not taken for the whole set's


def test_processes_read_their_shares_of_pictures_and_of_clips(data_dir, tmp_path, monkeypatch):
    """Numbers p, p + 3, … of each batch, and together the batches that one process reads."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for i in range(7):
        levels = np.arange(6, dtype=np.uint8)[:, None, None, None] + np.uint8(30 * i)
        frames = [Image.fromarray(np.broadcast_to(level, (8, 8, 3))) for level in levels]
        frames[0].save(clips / f"{i}.webp", save_all=True, append_images=frames[1:], lossless=True)
    configs = [
        (DataConfig("avatars/tiny", data_dir, image_size=8), 10),
        (DataConfig("folder", str(tmp_path), image_size=8, folder=str(clips), frames=3), 7),
    ]
    for config, count in configs:
        info = open_source(config).info
        whole = np.concatenate(list(of_dataset(config, info, limit=count).batches(4)))
        monkeypatch.setattr(processes, "count", lambda: 3)
        read = []
        for index in range(3):
            monkeypatch.setattr(processes, "index", lambda index=index: index)
            shares = of_dataset(config, info, limit=count).shares
            assert shares is not None
            read.append(list(shares(4)))
        monkeypatch.undo()
        assert [[total for total, _ in each] for each in read] == [
            [6] * (count // 6) + [count % 6] * bool(count % 6)
        ] * 3
        together = [
            mine[place]
            for batches in zip(*read, strict=True)
            for place in range(2)
            for _, mine in batches
            if place < len(mine)
        ]
        np.testing.assert_array_equal(np.stack(together), whole)

"""A directory holds the samples of one command, whole: interrupted, full, finished, in the way, or somebody else's."""

import errno
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zigma_jax.errors import ConfigError, DataError
from zigma_jax.training import sample_directory
from zigma_jax.training.sample_directory import SampleDirectory, has_manifest, pictures_of
from zigma_jax.training.streams import ArrayStream, Parts, write_npz

PICTURES = np.random.default_rng(0).integers(0, 256, (10, 8, 6, 3), np.uint8)
SETTINGS = {"seed": 0, "sample": {"steps": 3, "times": (0.0, 1.0)}}
LATENTS = np.random.default_rng(1).normal(size=(10, 2, 4)).astype(np.float32)


def open_directory(path, num=10, settings: Any = SETTINGS, **options):
    return SampleDirectory(path, num, settings, {"model": "toy"}, (8, 6, 3), **options)


def fill(path, start=0, end=10, **options):
    with open_directory(path, **options) as directory:
        assert directory.count == start
        for first in range(start, end, 4):
            directory.add(PICTURES[first : min(first + 4, end)])
        if end == directory.num:
            directory.finish(np.arange(10, dtype=np.int32))


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_what_is_in_it(tmp_path):
    fill(tmp_path / "a" / "b")
    path = tmp_path / "a" / "b"
    assert sorted(contents(path)) == [*(f"00000{i}.png" for i in range(10)), "grid.png", "manifest.json", "samples.npz"]
    with np.load(path / "samples.npz") as file:
        np.testing.assert_array_equal(file["samples"], PICTURES)
        np.testing.assert_array_equal(file["labels"], np.arange(10))
    with Image.open(path / "000007.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), PICTURES[7])
    with open_directory(path) as directory:
        assert directory.finished
    assert has_manifest(path)
    assert not has_manifest(tmp_path)
    pictures = pictures_of(path)
    assert (pictures.count, pictures.size, pictures.about["model"]) == (10, (8, 6), "toy")
    np.testing.assert_array_equal(np.concatenate(list(pictures.batches(3))), PICTURES)
    assert pictures_of(path, (4, 3), 5).first(100).shape == (5, 4, 3, 3)


def test_interrupted_and_gone_on_is_as_in_one_go(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fill(whole)
    fill(broken, 0, 4)
    (broken / "000004.png").write_bytes(b"killed in the mid")  # not counted yet
    drawn = {name: (broken / name).stat().st_mtime_ns for name in ("000000.png", "000003.png")}
    with pytest.raises(DataError, match=r"holds 4 of 10 samples.*the same command.*or take those .* --num=4"):
        pictures_of(broken)
    np.testing.assert_array_equal(pictures_of(broken, limit=3).first(9), PICTURES[:3])
    with pytest.raises(ConfigError, match=r"--num=5: .* holds 4 samples"):
        pictures_of(broken, limit=5)
    fill(broken, 4)
    assert contents(broken) == contents(whole)
    assert {name: (broken / name).stat().st_mtime_ns for name in drawn} == drawn


@pytest.mark.parametrize("at", ["write_npz", "save_png"])
def test_killed_while_finishing(tmp_path, monkeypatch, at):
    fill(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(sample_directory, at, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "broken")
    with open_directory(tmp_path / "broken") as directory:
        assert (directory.count, directory.finished) == (10, False)
        directory.finish(np.arange(10, dtype=np.int32))
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_full_disk(tmp_path, monkeypatch):
    fill(tmp_path, 0, 4)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, open_directory(tmp_path) as directory:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=rf"No space left on device .* {tmp_path}: the first 4 of 10 are whole"):
            directory.add(PICTURES[4:8])
        assert json.loads((tmp_path / "manifest.json").read_text())["count"] == 4
    fill(tmp_path, 4)


def test_others_samples_are_neither_mixed_nor_lost(tmp_path):
    fill(tmp_path)
    before = contents(tmp_path)
    other = SETTINGS | {"seed": 1}
    changes: list[dict[str, Any]] = [{"settings": other}, {"num": 3}, {"arrays": {"latents": ((2,), np.float32)}}]
    for options in changes:
        with pytest.raises(ConfigError, match=r"holds samples of other settings \(10 of 10\).*--overwrite"):
            open_directory(tmp_path, **options)
    with pytest.raises(ConfigError, match="\n  seed: 0 there, 1 now"):
        open_directory(tmp_path, settings=other)
    assert contents(tmp_path) == before

    (tmp_path / "notes.txt").write_text("mine")
    with open_directory(tmp_path, num=3, overwrite=True) as directory:
        directory.add(PICTURES[:3])
        directory.finish(None)
    names = ["000000.png", "000001.png", "000002.png", "grid.png", "manifest.json", "notes.txt", "samples.npz"]
    assert sorted(contents(tmp_path)) == names
    assert pictures_of(tmp_path).count == 3
    fill(tmp_path, settings=other, overwrite=True)

    with open_directory(tmp_path / "failed"):  # before a sample was there, by settings that could not work
        pass
    fill(tmp_path / "failed", settings=other)

    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / ".DS_Store").write_text("")
    with open_directory(photographs):
        pass
    (photographs / "manifest.json").unlink()
    (photographs / "000001.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds 000001.png, and no manifest.json says .*; name a new directory"):
        open_directory(photographs, overwrite=True)
    assert (photographs / "000001.png").read_bytes() == b"mine"


def test_where_there_can_be_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "deep" / "er"):
        with pytest.raises(ConfigError, match="file is a file, where a directory for the results is needed"):
            open_directory(path)
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match=r"manifest\.json is damaged, or of another program"):
        open_directory(tmp_path)


def test_a_manifest_names_what_is_scored(tmp_path):
    fill(tmp_path)
    Image.fromarray(PICTURES[0]).save(tmp_path / "000010.png")  # surplus
    assert pictures_of(tmp_path).count == 10
    (tmp_path / "000003.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"000003.png: no picture that can be read"):
        list(pictures_of(tmp_path).batches(4))


def test_videos_and_arrays(tmp_path):
    videos = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 6, 3), np.uint8)
    arrays = {"samples": ((3, 8, 6, 3), np.uint8), "latents": ((2, 4), np.float32)}

    def work(start, end, finish=True):
        with SampleDirectory(tmp_path, 5, {}, {}, (3, 8, 6, 3), arrays, kept=("latents",)) as directory:
            assert directory.count == start
            directory.add(videos[start:end], samples=videos[start:end], latents=LATENTS[start:end])
            if finish:
                directory.finish(None)

    work(0, 2, finish=False)
    with open(tmp_path / "latents.npy", "ab") as file:
        file.write(b"of a killed program")
    work(2, 5)
    names = [
        *(f"00000{i}.mp4" for i in range(5)),
        "grid.mp4",
        "grid.png",
        "latents.npy",
        "manifest.json",
        "samples.npz",
    ]
    assert sorted(contents(tmp_path)) == names
    np.testing.assert_array_equal(np.load(tmp_path / "latents.npy", mmap_mode="r"), LATENTS[:5])
    with np.load(tmp_path / "samples.npz") as file:
        np.testing.assert_array_equal(file["samples"], videos)
    with pytest.raises(ConfigError, match="holds videos, where pictures are needed"):
        pictures_of(tmp_path)


def test_streams(tmp_path):
    rows = LATENTS.astype(np.float16)
    for count in (0, 4):
        stream = ArrayStream(tmp_path / "a.npy", (10, 2, 4), np.float16, count)
        stream.append(rows[count : 4 if count == 0 else 10])
        stream.close()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), rows)
    with pytest.raises(DataError, match="holds fewer than the 11 rows"):
        ArrayStream(tmp_path / "a.npy", (12, 2, 4), np.float16, 11)
    write_npz(tmp_path / "a.npz", {"x": Parts((10, 2, 4), np.float32, iter([LATENTS[:3], LATENTS[3:]]))})
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["x"], LATENTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "a.npz"]

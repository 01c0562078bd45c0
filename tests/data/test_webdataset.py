"""Tars in the layout of the original's data, read without unpacking."""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import logging

from tests.data.pictures import picture
from zigma_jax.data import pipeline, tar_index
from zigma_jax.data.config import DataConfig
from zigma_jax.data.pictures.decode import decode
from zigma_jax.data.sources import open_source, open_splits
from zigma_jax.data.webdataset import TarSource, find_shards, latent_field
from zigma_jax.errors import ConfigError, DataError

Member = tuple[str, bytes]


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def sample(i: int, key: str | None = None, side: int = 2) -> list[Member]:
    """A sample as MM-CelebA-HQ's are: a picture, its captions, their features, a latent."""
    key = f"{i:06}" if key is None else key
    latent = np.arange(4 * side * side, dtype=np.float32).reshape(4, side, side) + i
    return [
        (f"{key}.image.jpg", picture(8 * i, (16, 16), "JPEG")),
        (f"{key}.caption.json", json.dumps([f"picture {i}", f"number {i}, grün"]).encode()),
        (f"{key}.caption_clip_feature.npy", npy(np.zeros((2, 7, 8), np.float32))),
        (f"{key}.img_feature256.npy", npy(latent * np.float32(0.18215))),
    ]


def tar(path: Path, members: Sequence[Member], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path) -> Path:
    """Three tars of train and one of test, four samples each."""
    root = tmp_path / "shards"
    for number in range(3):
        tar(root / f"train-{number:06}.tar", [m for i in range(4) for m in sample(4 * number + i)])
    tar(root / "test-000000.tar", [m for i in range(12, 16) for m in sample(i)])
    return root


def load(place, tmp_path, split="train", **options) -> TarSource:
    return TarSource(str(place), split, data_dir=tmp_path / "data", **options)


def grey(source: TarSource, index: int) -> int:
    return round(float(np.asarray(decode(source.picture(source[index]))).mean()) / 8)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    return said


def test_pictures_captions_and_splits_of_the_originals_tars(shards, tmp_path):
    source = load(shards, tmp_path)
    assert [grey(source, i) for i in range(len(source))] == list(range(12))
    assert source.captions(5) == ["picture 5", "number 5, grün"]
    assert (source.info.num_classes, source.info.has_captions) == (0, True)
    test = load(shards, tmp_path, "test[50%:]")
    assert [grey(test, i) for i in range(len(test))] == [14, 15]
    with pytest.raises(DataError, match=r"data.split='valid': there are the splits test, train"):
        load(shards, tmp_path, "valid")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("{root}", 4),
        ("{root}/train-*.tar", 3),
        ("{root}/train-{{000000..000001}}.tar", 2),
        ("{root}/train-{{000000,000002}}.tar, {root}/test-000000.tar", 3),
        ("{root}/train-000000.tar,{root}/train-000000.tar", 1),
    ],
)
def test_shards_by_directory_glob_range_and_list(shards, pattern, found):
    assert len(find_shards(pattern.format(root=shards))) == found
    assert len(find_shards([str(shards / "train-000000.tar"), str(shards / "train-000001.tar")])) == 2


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{root}/train-{{000002..000003}}.tar", "train-000003.tar: there is no such file"),
        ("{root}/val-*.tar", "there is no such file"),
        ("{root}/train-{{3..1}}.tar", "runs backwards"),
        ("pipe:curl http://x/a.tar", "read from the disk; download"),
    ],
)
def test_shards_that_are_not_there_are_named(shards, pattern, message):
    with pytest.raises(DataError, match=message):
        find_shards(pattern.format(root=shards))


def test_the_same_batches_for_any_number_of_processes_and_after_a_resume(shards, tmp_path):
    config = DataConfig(name="webdataset", shards=str(shards), data_dir=str(tmp_path), image_size=8)

    def dataset(**processes):
        return pipeline.make_dataset(config, global_batch=4, seed=3, **processes)

    whole = dataset()
    batches = [batch["index"].tolist() for _, batch in zip(range(6), whole, strict=False)]
    assert sorted(index for batch in batches[:3] for index in batch) == list(range(12))
    halves = [dataset(process_index=p, process_count=2) for p in range(2)]
    assert batches[4] == [*halves[0].batch(4)["index"], *halves[1].batch(4)["index"]]
    running = iter(dataset())
    for _ in range(2):
        next(running)
    resumed = iter(dataset())
    resumed.set_state(running.get_state())
    assert next(resumed)["index"].tolist() == batches[2]
    assert whole.captions(whole.batch(0))[0] == [
        f"picture {batches[0][0]}",
        f"number {batches[0][0]}, grün",
    ]


def test_the_index_is_made_once_and_anew_for_changed_tars(shards, tmp_path, monkeypatch):
    first = load(shards, tmp_path)
    assert Path(first.info.path) == shards
    monkeypatch.setattr(tar_index, "_scan", None)  # so that reading the tars again would fail
    again = load(shards, tmp_path)
    assert again.info == first.info
    assert grey(pickle.loads(pickle.dumps(again)), 7) == 7
    monkeypatch.undo()
    tar(shards / "train-000001.tar", sample(20))
    assert len(load(shards, tmp_path)) == 9
    assert load(shards, tmp_path).info.fingerprint != first.info.fingerprint


def test_the_fingerprint_does_not_depend_on_where_and_when(shards, tmp_path):
    first = load(shards, tmp_path).info
    os.utime(shards / "train-000000.tar", (1, 1))
    moved = shards.rename(tmp_path / "elsewhere")
    assert load(moved, tmp_path).info.fingerprint == first.fingerprint
    assert load(moved, tmp_path, "train[:50%]").info.fingerprint != first.fingerprint


def test_a_damaged_index_is_made_anew(shards, tmp_path, warnings):
    load(shards, tmp_path)
    (index,) = shards.glob("*.index.npz")
    index.write_bytes(b"no index")
    assert len(load(shards, tmp_path)) == 12
    assert "is damaged" in warnings[0]


def test_where_the_shards_cannot_be_written_the_index_goes_to_data_dir(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index.os, "access", lambda path, mode: False)
    assert Path(load(shards, tmp_path).info.path) == tmp_path / "data"
    assert not list(shards.glob("*.npz"))
    assert len(load(shards, tmp_path)) == 12


def test_a_sample_without_its_picture_is_counted_named_and_left_out(tmp_path, warnings):
    path = tar(tmp_path / "a.tar", sample(0) + sample(1)[1:] + sample(2))
    source = load(path, tmp_path)
    assert [grey(source, i) for i in range(len(source))] == [0, 2]
    assert "1 of 3 samples have no picture and are left out" in warnings[0]
    assert f"{path}, sample 000001" in warnings[0]
    with pytest.raises(DataError, match=r"1 of 3 samples lack .*a.tar, sample 000001; .*=0.0 allows 0"):
        load(path, tmp_path, max_bad_fraction=0.0)


def test_members_that_occur_twice_count_as_when_unpacked(tmp_path, warnings):
    path = tar(tmp_path / "a.tar", [*sample(0), *sample(1), ("000000.image.jpg", picture(8 * 9, (16, 16), "JPEG"))])
    source = load(path, tmp_path)
    assert [grey(source, i) for i in range(len(source))] == [9, 1]
    assert "a.tar: 1 members occur twice, of which the later are used: 000000.image.jpg" in warnings[0]


def test_keys_in_folders_hidden_files_and_names_beyond_ascii(tmp_path):
    members = [
        *sample(0, "./deep/er.d/0"),
        *sample(1, "deep/er.d/1"),
        *sample(2, "Gärten/日本"),
        ("._0.image.jpg", b"x"),
        ("__MACOSX/._0.image.jpg", b"x"),
        (".DS_Store", b"x"),
        ("README", b"x"),
        ("x" * 300 + ".image.JPG", picture(24, (16, 16), "JPEG")),
        ("x" * 300 + ".caption.json", b'"one text"'),
    ]
    source = load(tar(tmp_path / "Ärger 1.tar", members), tmp_path)
    assert [grey(source, i) for i in range(len(source))] == [0, 1, 2, 3]
    assert source.captions(3) == ["one text"]
    odd = tar(tmp_path / "latin" / "a.tar", sample(5, "G\udce4rten"), encoding="utf-8", errors="surrogateescape")
    assert grey(load(odd, tmp_path), 0) == 5
    assert grey(load(odd, tmp_path), 0) == 5  # from the index that was kept


@pytest.mark.parametrize("cut", [0, 100, 1000, 4096, -12_000, -10_241])
def test_a_tar_that_is_cut_off_is_named(shards, tmp_path, cut):
    path = shards / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"train-000001.tar: (is cut off|is an empty|no tar, or one).* again"):
        load(shards, tmp_path)


def test_damage_in_the_middle_and_zeros_at_the_end(shards, tmp_path):
    content = bytearray((shards / "train-000001.tar").read_bytes())
    with tarfile.open(shards / "train-000001.tar") as file:
        third = file.getmembers()[4].offset
    broken = content.copy()
    broken[third : third + 8] = b"\xff" * 8
    (shards / "train-000001.tar").write_bytes(broken)
    (shards / "train-000002.tar").write_bytes(content[:third] + b"\0" * (3 << 20))
    with pytest.raises(DataError) as caught:
        load(shards, tmp_path)
    assert f"train-000001.tar: is damaged at byte {third:,}" in str(caught.value)
    assert "train-000002.tar: only zeros follow" in str(caught.value)
    (shards / "train-000001.tar").write_bytes(content[:third] + b"\0" * 1024)
    (shards / "train-000002.tar").unlink()
    assert len(load(shards, tmp_path)) == 5


def test_compressed_and_empty_tars(tmp_path, warnings):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"there are no tars in it, but a.tar.gz: unpack it"):
        load(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"a.tar.gz: is compressed.*gunzip"):
        load(tmp_path / "a.tar.gz", tmp_path)
    tar(tmp_path / "1.tar", [])
    with pytest.raises(DataError, match=r"no samples in 1 tars"):
        load(tmp_path / "1.tar", tmp_path)
    tar(tmp_path / "2.tar", sample(0))
    assert len(load(f"{tmp_path}/{{1,2}}.tar", tmp_path)) == 1
    assert "1.tar: holds no samples" in warnings[0]


def test_classes_and_their_names(tmp_path):
    def labelled(i, number, name):
        return [*sample(i)[:1], (f"{i:06}.cls_id.cls", number), (f"{i:06}.cls_name.json", json.dumps(name).encode())]

    members = labelled(0, b"2", "walk") + labelled(1, b"0\n", "run") + labelled(2, b"2", "walk")
    (source,) = open_splits(DataConfig(name="webdataset", shards=str(tar(tmp_path / "a.tar", members))))
    assert source.info.class_names == ("run", "1", "walk")
    assert [source.label(source[i]) for i in range(3)] == [2, 0, 2]
    with pytest.raises(DataError, match="has no captions"):
        source.captions(0)
    bad = tar(tmp_path / "b.tar", labelled(0, b"0", "x") + labelled(1, b"-1", "y"))
    with pytest.raises(DataError, match="1 of 2 samples lack a picture, or a class"):
        load(bad, tmp_path, max_bad_fraction=0.0)


def test_other_members_can_be_named(tmp_path):
    members = [("1.photo.jpg", picture(8)), ("1.title.txt", b"a title "), ("1.kind.cls", b"1")]
    path = tar(tmp_path / "a.tar", members)
    config: dict[str, Any] = {"image_column": "photo.jpg", "caption_column": "title.txt", "label_column": "kind.cls"}
    source = open_source(DataConfig(name="webdataset", shards=str(path), **config))
    assert (source.captions(0), source.label(source[0]), source.picture(source[0])) == (["a title"], 1, picture(8))
    with pytest.raises(DataError, match=r"data.image_column='x.jpg': the samples' members are photo.jpg, title.txt"):
        load(path, tmp_path, image="x.jpg")


def test_latents_come_in_the_networks_units_channels_last(shards, tmp_path):
    source = load(shards, tmp_path)
    field = latent_field(source, (2, 2, 4))
    expected = (np.arange(16, dtype=np.float32).reshape(4, 2, 2) + 3).transpose(1, 2, 0)
    np.testing.assert_allclose(source.latent(3, field), expected, rtol=1e-6)
    with pytest.raises(DataError, match=r"no latents of .* \(4, 4, 4\).*img_feature256.npy of \(2, 2, 4\)"):
        latent_field(source, (4, 4, 4))


@pytest.mark.parametrize(
    "content",
    [
        b"no array",
        npy(np.full((4, 2, 2), np.nan, np.float32)),
        npy(np.zeros((4, 4), np.float32)),
        npy(np.zeros((4, 2, 2), np.float32))[:-1],
        npy(np.array([{"a": 1}], object)),
        npy(np.zeros((4, 2, 2), np.int64)),
    ],
)
def test_what_is_no_latent_is_named(tmp_path, content):
    path = tar(tmp_path / "a.tar", [("7.latent.npy", content), ("7.image.png", picture(1))])
    with pytest.raises(DataError, match=r"a.tar, sample 7: latent.npy is no latent"):
        load(path, tmp_path).latent(0, "latent.npy")


def test_tars_of_latents_alone(tmp_path):
    path = tar(tmp_path / "a.tar", [("7.latent.npy", npy(np.ones((4, 2, 2), np.float16)))])
    source = load(path, tmp_path)
    assert latent_field(source, (2, 2, 4)) == "latent.npy"
    with pytest.raises(DataError, match=r"has no pictures; its members: latent.npy"):
        source.picture(source[0])


def test_a_tar_that_shrinks_while_it_is_read(shards, tmp_path):
    source = load(shards, tmp_path)
    path = shards / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match="was changed after it was indexed"):
        source.picture(source[0])


def test_fields_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"data.name='webdataset' needs data.shards"):
        open_source(DataConfig(name="webdataset"))
    with pytest.raises(ConfigError, match=r"data.shards='a' is set, but data.name='avatars'"):
        open_source(DataConfig(shards="a"))

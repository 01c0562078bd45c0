"""Parquet files as the Hugging Face hub stores data sets, from a directory and by hf://."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import logging

from tests.data.pictures import picture
from zigma_jax.data import hub
from zigma_jax.data.config import DataConfig
from zigma_jax.data.pictures.decode import decode
from zigma_jax.data.sources import Source, open_source, open_splits
from zigma_jax.errors import DataError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(values: Sequence[int]) -> pa.Array:
    return pa.array([{"bytes": picture(v), "path": f"{v}.png"} for v in values], IMAGE)


def write(path: Path, columns: Mapping[str, Any], features: Mapping[str, Any] | None = None) -> Path:
    """A file as the `datasets` library writes it: the features stand in the schema's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(columns))
    if features is not None:
        about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        table = table.replace_schema_metadata(about)
    pq.write_table(table, path, row_group_size=2)
    return path


def load(folder: Path, tmp_path: Path, split: str = "train", **options) -> Source:
    config = DataConfig(name="parquet", folder=str(folder), data_dir=str(tmp_path / "data"), split=split, **options)
    return open_source(config)


def greys(source: Source) -> list[int]:
    return [int(np.asarray(decode(source.picture(source[i])))[0, 0, 0]) for i in range(len(source))]


def labels(source: Source) -> list[int]:
    return [source.label(source[i]) for i in range(len(source))]


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    return said


def test_columns_are_found_by_their_features_and_splits_by_the_files(tmp_path):
    features = {
        "picture_of_it": {"_type": "Image"},
        "kind": {"_type": "ClassLabel", "names": ["cat", "dog", "emu"]},
        "descriptions": {"_type": "List", "feature": {"dtype": "string", "_type": "Value"}},
        "file_name": {"dtype": "string", "_type": "Value"},
        "score": {"dtype": "float32", "_type": "Value"},
    }

    def columns(values):
        return {
            "picture_of_it": encoded(values),
            "kind": pa.array([v % 3 for v in values]),
            "descriptions": pa.array([[f"picture {v}", "grün"] for v in values]),
            "file_name": pa.array([f"{v}.png" for v in values]),
            "score": pa.array([0.5] * len(values), pa.float32()),
        }

    root = tmp_path / "my set"
    write(root / "data" / "train-00000-of-00002.parquet", columns([0, 1, 2]), features)
    write(root / "data" / "train-00001-of-00002.parquet", columns([3, 4]), features)
    write(root / "data" / "valid-00000-of-00001-0123456789abcdef.parquet", columns([5]), features)
    source = load(root, tmp_path)
    assert greys(source) == [0, 1, 2, 3, 4]
    assert labels(source) == [0, 1, 2, 0, 1]
    assert source.info.class_names == ("cat", "dog", "emu")
    assert source.captions(4) == ["picture 4", "grün"]
    assert greys(load(root, tmp_path, "validation")) == [5]
    assert greys(load(root, tmp_path, "train[3:]")) == [3, 4]
    assert {
        s.info.split for s in open_splits(DataConfig(name="parquet", folder=str(root), data_dir=f"{tmp_path}/data"))
    }
    assert source.info.fingerprint != load(root, tmp_path, "train[3:]").info.fingerprint
    (root / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"1 of the 2 files 'train' are missing, such as number 1"):
        load(root, tmp_path)


def test_a_changed_directory_is_another_set(tmp_path):
    write(tmp_path / "a" / "x.parquet", {"image": encoded([1])})
    first = load(tmp_path / "a", tmp_path)
    assert load(tmp_path / "a", tmp_path).info == first.info
    write(tmp_path / "a" / "x.parquet", {"image": encoded([2])})
    assert greys(load(tmp_path / "a", tmp_path)) == [2]
    assert load(tmp_path / "a", tmp_path).info.name != first.info.name


@pytest.mark.parametrize(
    ("values", "names", "ids"),
    [
        ([2, 0, 2], ("0", "1", "2"), [2, 0, 2]),
        ([-1, 1, -1], ("-1", "1"), [0, 1, 0]),
        ([True, False, True], ("not male", "male"), [1, 0, 1]),
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
    ],
)
def test_classes_of_other_columns(tmp_path, values, names, ids):
    write(tmp_path / "a" / "x.parquet", {"image": encoded([1, 2, 3]), "male": pa.array(values)})
    source = load(tmp_path / "a", tmp_path, label_column="male")
    assert (source.info.class_names, labels(source)) == (names, ids)
    assert load(tmp_path / "a", tmp_path).info.num_classes == 0


def test_bytes_in_a_column_named_image_and_one_caption_each(tmp_path):
    columns = {"img": pa.array([picture(3)]), "label": pa.array([1]), "text": pa.array(["three"])}
    source = load(write(tmp_path / "a" / "x.parquet", columns).parent, tmp_path)
    assert (greys(source), labels(source), source.captions(0)) == ([3], [1], ["three"])
    other = write(tmp_path / "b" / "x.parquet", {"raw": columns["img"], "words": columns["text"]}).parent
    assert load(other, tmp_path, image_column="raw").captions(0) == ["three"]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"url": pa.array(["http://x"])}, {}, r"no column holds encoded pictures.*The columns: url \(string\)"),
        (
            {"a": encoded([1]), "b": encoded([1])},
            {},
            "several columns hold encoded pictures; choose one by data.image_",
        ),
        ({"image": encoded([1])}, {"label_column": "x"}, r"data.label_column='x'.*it has image \(image\)"),
        ({"image": encoded([1])}, {"caption_column": "image"}, r"data.caption_column='image'"),
        ({"image": encoded([1]), "label": pa.array([20240131])}, {}, "20240131 is no class"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, columns, options, message):
    write(tmp_path / "a" / "x.parquet", columns)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a", tmp_path, **options)


def test_pictures_that_cannot_be_read_are_counted_and_left_out(tmp_path, warnings):
    rows = [picture(1), b"no picture", None, picture(4)]
    image = pa.array([{"bytes": row, "path": None} for row in rows], IMAGE)
    path = write(tmp_path / "a" / "x.parquet", {"image": image})
    assert greys(load(path.parent, tmp_path)) == [1, 4]
    assert any(f"{path}, row 1 holds no picture that can be read" in text for text in warnings)
    assert warnings[-1] == "2 of 4 rows of the split train were left out"
    with pytest.raises(DataError, match=r"1 of the first 2 rows .*max_bad_fraction=0.0"):
        load(path.parent, tmp_path / "other", max_bad_fraction=0.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "x.parquet: is a pointer of Git LFS"),
        (b"<html>", "x.parquet: is no parquet file, or damaged"),
        (b"", "x.parquet: is no parquet file, or damaged"),
    ],
)
def test_files_that_are_no_parquet(tmp_path, content, message):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a", tmp_path)


def test_a_file_that_is_damaged_inside_leaves_nothing_prepared(tmp_path):
    path = write(tmp_path / "a" / "x.parquet", {"image": encoded([1, 2, 3, 4, 5, 6])})
    content = bytearray(path.read_bytes())
    content[4:300] = b"\xff" * 296
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x.parquet: is damaged after row 0"):
        load(tmp_path / "a", tmp_path)
    assert not list((tmp_path / "data").glob("parquet/*/1.0.0"))
    with pytest.raises(DataError, match=r"no .parquet files in it"):
        load(tmp_path / "data", tmp_path)


# ---- the hub


def files(*names: str) -> list[PurePosixPath]:
    return [PurePosixPath(name) for name in names]


def test_names_of_the_hub():
    assert hub.parse("hf://datasets/a/b-c") == ("a/b-c", "", None)
    assert hub.parse("hf://datasets/a/b/img+x@refs/pr/1") == ("a/b", "img+x", "refs/pr/1")
    with pytest.raises(DataError, match="must be hf://datasets/OWNER/NAME"):
        hub.parse("hf://datasets/a")


def test_configurations_of_the_hub_by_card_and_by_folders():
    card = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train-*}
- config_name: large
  default: true
  data_files:
  - {split: train, path: "large/train-*"}
  - {split: valid, path: ["large/valid-*"]}
---
# A set
"""
    there = files("small/train-0.parquet", "large/train-0.parquet", "large/valid-0.parquet")
    assert hub.choose_files("x", "", there, card) == {"train": [there[1]], "validation": [there[2]]}
    assert hub.choose_files("x", "small", there, card) == {"train": [there[0]]}
    with pytest.raises(DataError, match="choose one of the configurations small, large"):
        hub.choose_files("x", "huge", there, card)
    assert hub.choose_files("x", "small", there, "") == {"train": [there[0]]}
    with pytest.raises(DataError, match="choose one of the configurations large, small"):
        hub.choose_files("x", "", there, "")
    converted = files("default/train/0000.parquet", "default/test/0000.parquet")
    assert hub.choose_files("x", "", converted, "---\n{")["test"] == [converted[1]]
    assert set(hub.choose_files("x", "", files("train/0.parquet", "test/0.parquet"), "")) == {"train", "test"}
    with pytest.raises(DataError, match="the hub has converted only a part"):
        hub.choose_files("x", "", files("default/partial-train/0000.parquet"), "")


def test_a_set_of_the_hub_is_prepared_once_and_then_needs_neither_hub_nor_files(tmp_path, monkeypatch):
    path = write(tmp_path / "cache" / "train-00000-of-00001.parquet", {"image": encoded([1, 2])})
    asked: list[str] = []

    def download(name):
        asked.append(name)
        return {"train": [path]}, "0123456789abcdef" * 2

    monkeypatch.setattr(hub, "download", download)
    config = DataConfig(name="hf://datasets/some/set", data_dir=str(tmp_path / "data"))
    first = open_source(config)
    assert first.info.name == "parquet/some--set-0123456789ab/1.0.0"
    path.unlink()
    again = open_source(config)
    assert (asked, greys(again), again.info) == ([config.name], [1, 2], first.info)


def test_without_a_network_the_hub_says_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        open_source(DataConfig(name="hf://datasets/some/set", data_dir=str(tmp_path)))
    assert "\n" not in str(caught.value)
    for part in (
        "cannot be reached",
        "not in the cache /",
        "hf download some/set",
        "data.name=parquet data.folder=DIR",
    ):
        assert part in str(caught.value)


def test_without_a_network_what_is_in_the_cache_is_read(tmp_path, monkeypatch, warnings):
    snapshot = tmp_path / "datasets--some--set" / "snapshots" / "abc"
    write(snapshot / "data" / "train-00000-of-00001.parquet", {"image": encoded([7])})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def snapshot_download(repo, *, revision, **options):
        assert (repo, options["repo_type"]) == ("some/set", "dataset")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    source = open_source(DataConfig(name="hf://datasets/some/set", data_dir=str(tmp_path / "data")))
    assert greys(source) == [7]
    assert any("is read from the cache" in text for text in warnings)

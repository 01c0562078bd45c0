"""Captions of every kind of set, from the file to the batch: kept whole, or counted; never split into others."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.pictures import picture, write
from tests.data.toy_text import ToyTextEncoder
from zigma_jax.data.captions import TokenizedCaptions
from zigma_jax.data.config import DataConfig
from zigma_jax.data.encoded_text import text_set
from zigma_jax.data.pipeline import make_dataset
from zigma_jax.data.sources import open_source

TOY = ToyTextEncoder.of()
ODD = [
    "a line\u2028of two\u2029three",
    "next\x85line\x0cpage\x0b",
    "\"quoted\", 'so', \\n",
    "a b " * 2500,
    "caf\u00e9 \U0001f408",
]
BROKEN = "one\ntwo\r\nthree\rfour"
LISTS = [[text, f"another of {number}"] for number, text in enumerate([*ODD, BROKEN])]


def name(number: int) -> str:
    return f"{number:02}.png"


def table(folder: Path, lists) -> DataConfig:
    rows = [{"file_name": name(i), "captions": texts} for i, texts in enumerate(lists)]
    lines = "\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows))
    write(folder, {"metadata.jsonl": lines} | {name(i): picture(5 * i) for i in range(len(lists))})
    return DataConfig("folder", folder=str(folder))


def comma_separated(folder: Path, lists) -> DataConfig:
    """A row for each caption."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["file_name", "text"])
    writer.writerows([name(i), text] for i, texts in enumerate(lists) for text in texts)
    write(folder, {"metadata.csv": out.getvalue()} | {name(i): picture(5 * i) for i in range(len(lists))})
    return DataConfig("folder", folder=str(folder))


def parquet(folder: Path, lists) -> DataConfig:
    folder.mkdir()
    pictures = [{"bytes": picture(5 * i), "path": name(i)} for i in range(len(lists))]
    pq.write_table(
        pa.table({"image": pictures, "captions": pa.array(lists, pa.list_(pa.string()))}), folder / "a.parquet"
    )
    return DataConfig("parquet", folder=str(folder))


def tars(folder: Path, lists) -> DataConfig:
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as file:
        for i, texts in enumerate(lists):
            members = {"image.png": picture(5 * i), "caption.json": json.dumps(texts, ensure_ascii=i % 2 == 0).encode()}
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{i:04}.{ending}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return DataConfig("webdataset", shards=str(folder))


def opened(kind, tmp_path, lists):
    config = kind(tmp_path / "set", lists)
    config = DataConfig(**{**vars(config), "data_dir": str(tmp_path / "data"), "image_size": 8})
    return open_source(config), config


@pytest.mark.parametrize("kind", [table, comma_separated, parquet, tars])
def test_odd_captions_are_kept_whole(tmp_path, kind):
    source, config = opened(kind, tmp_path, LISTS)
    assert [source.captions(i) for i in range(len(LISTS))] == LISTS
    made = text_set(source, TOY, cache=str(tmp_path / "cache"))
    assert made.captions == 2 * len(LISTS)
    assert (made.without, made.empty, made.truncated, made.unreadable) == (0, 0, 1, 0)
    for index, texts in enumerate(LISTS):
        for text, state in zip(texts, made.states(index), strict=True):
            np.testing.assert_allclose(state, TOY.encode(*TOY.tokenize([text]))[0], atol=2e-3)
    for text in (made, TokenizedCaptions(source, TOY)):
        batch = make_dataset(config, global_batch=len(LISTS), text=text).batch(0)
        assert batch["token_mask"].sum(1).max() == 40


@pytest.mark.parametrize("kind", [parquet, tars])
def test_no_captions_at_all_are_the_empty_one_and_counted(tmp_path, kind):
    lists = [["one"], [], ["", "two"], [""]]
    source, config = opened(kind, tmp_path, lists)
    assert [source.captions(i) for i in range(4)] == lists
    made = text_set(source, TOY, cache=str(tmp_path / "cache"))
    assert (made.captions, made.without, made.empty) == (5, 1, 2)
    for text in (made, TokenizedCaptions(source, TOY)):
        assert make_dataset(config, global_batch=4, text=text).batch(0)["token_mask"].sum(1).min() == 2


def test_nulls_of_parquet_are_no_captions(tmp_path):
    source, _ = opened(parquet, tmp_path, [["one", None], None, [None]])
    assert [source.captions(i) for i in range(3)] == [["one"], [], []]


def test_lines_of_a_text_beside_a_picture_end_at_newlines_alone(tmp_path):
    files = {f"{i}.png": picture(5 * i) for i in range(len(ODD))}
    files |= {f"{i}.txt": f"\ufeff{text}\r\n\r\nanother\n" for i, text in enumerate(ODD)}
    root = write(tmp_path / "set", files)
    source = open_source(DataConfig("folder", str(tmp_path / "data"), folder=str(root)))
    assert [source.captions(i) for i in range(len(ODD))] == [[text, "another"] for text in ODD]

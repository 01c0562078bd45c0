"""Directories of pictures, in the layouts of Hugging Face's imagefolder."""

import csv
import hashlib
import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.data.pictures import picture, write
from zigma_jax.data import sources
from zigma_jax.data.datasets import folder
from zigma_jax.data.datasets.folder import Folder, scan
from zigma_jax.data.pictures.decode import decode
from zigma_jax.data.pipeline import BadDataError, DataConfig, make_dataset
from zigma_jax.errors import DataError


def load(root, data_dir, split="train") -> sources.Source:
    return sources.PreparedSource(sources.prepare("folder", data_dir, str(root)), split)


def greys(source) -> list[int]:
    return [np.asarray(decode(source.picture(source[i])))[0, 0, 0] for i in range(len(source))]


def jsonl(*rows: dict) -> str:
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def test_pictures_side_by_side_have_no_classes(tmp_path, data_dir):
    files = {
        "b.png": picture(2),
        "a.JPG": picture(1, kind="JPEG"),
        "c.webp": picture(3, kind="WEBP"),
        "notes.txt": "x",
    }
    source = load(write(tmp_path / "p", files), data_dir)
    assert greys(source) == [1, 2, 3]
    assert (source.info.num_classes, source.info.has_captions) == (0, False)


def test_subfolders_are_classes_in_alphabetical_order(tmp_path, data_dir):
    files = {"dog/1.png": picture(1), "cat/2.png": picture(2), "cat/deep/3.png": picture(3)}
    source = load(write(tmp_path / "p", files), data_dir)
    assert source.info.class_names == ("cat", "dog")
    assert [source.label(source[i]) for i in range(3)] == [0, 0, 1]
    assert greys(source) == [2, 3, 1]


def test_split_folders_are_splits_with_the_classes_of_all(tmp_path, data_dir):
    root = write(tmp_path / "p", {"train/b/1.png": picture(1), "test/a/2.png": picture(2)})
    train, test = load(root, data_dir), load(root, data_dir, "test")
    assert train.info.class_names == test.info.class_names == ("a", "b")
    assert (train.label(train[0]), test.label(test[0])) == (1, 0)


def test_metadata_gives_captions_and_classes(tmp_path, data_dir):
    rows = jsonl(
        {"file_name": "x/2.png", "text": "a grey, a little lighter", "label": "light"},
        {"file_name": "1.png", "text": "grün", "label": "dark"},
    )
    files = {"1.png": picture(1), "x/2.png": picture(2), "x/unlisted.png": picture(9), "metadata.jsonl": rows}
    source = load(write(tmp_path / "p", files), data_dir)
    assert greys(source) == [2, 1]
    assert [source.captions(i) for i in range(2)] == [["a grey, a little lighter"], ["grün"]]
    assert source.info.class_names == ("dark", "light")
    assert [source.label(source[i]) for i in range(2)] == [1, 0]


def test_a_csv_with_numbers_for_classes_keeps_the_numbers(tmp_path, data_dir):
    table = 'file_name,label,caption\n1.png,10,"one, ten"\n2.png,2,two\n'
    files = {"train/1.png": picture(1), "train/2.png": picture(2), "train/metadata.csv": table}
    source = load(write(tmp_path / "p", files), data_dir)
    assert source.info.num_classes == 11
    assert [source.label(source[i]) for i in range(2)] == [10, 2]
    assert source.captions(0) == ["one, ten"]


def test_a_changed_folder_is_prepared_anew_and_a_moved_one_is_the_same_set(tmp_path, data_dir):
    root = write(tmp_path / "p", {"1.png": picture(1)})
    first = load(root, data_dir)
    moved = load(write(tmp_path / "elsewhere" / "p", {"1.png": picture(1)}), data_dir)
    assert moved.info.path == first.info.path
    write(root, {"2.png": picture(2)})
    assert greys(load(root, data_dir)) == [1, 2]
    assert greys(first) == [1]


def test_an_edit_that_keeps_size_and_time_is_noticed_and_an_unchanged_picture_is_not_read_again(tmp_path):
    root = write(tmp_path / "p", {"1.png": picture(1), "2.png": picture(2)})
    assert len(picture(1)) == len(picture(3))
    first = load(root, str(tmp_path / "data"))
    before = (root / "1.png").stat()
    write(root, {"1.png": picture(3)})
    os.utime(root / "1.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    with mock.patch.object(folder.hashlib, "file_digest", wraps=hashlib.file_digest) as read:
        edited = load(root, str(tmp_path / "data"))
    assert [Path(call.args[0].name).name for call in read.call_args_list] == ["1.png"]
    assert (greys(edited), greys(first)) == ([3, 2], [1, 2])
    assert edited.info.fingerprint != first.info.fingerprint
    (memory,) = (tmp_path / "data" / "folder").glob(".*.json")
    memory.write_text("damaged")
    assert load(root, str(tmp_path / "data")).info == edited.info


PNG = picture(1)
TWO = {"1.png": PNG, "2.png": PNG}


def classes(root, data_dir, split="train") -> tuple[tuple[str, ...], list[int]]:
    source = load(root, data_dir, split)
    return source.info.class_names, [source.label(source[i]) for i in range(len(source))]


def captions(root, data_dir) -> list[list[str]]:
    source = load(root, data_dir)
    return [source.captions(i) for i in range(len(source))]


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        ({"0": 0, "1": 1, "2": 2, "10": 10}, tuple(map(str, range(11)))),
        ({"001": 0, "002": 1, "010": 2}, ("001", "002", "010")),
        ({"01": 0, "1": 1}, ("01", "1")),
        ({"1": 0, "20240131": 1}, ("1", "20240131")),
        ({"9": 0, "10": 1, "2024": 2}, ("9", "10", "2024")),
        ({"10": 0, "9": 1, "cat": 2}, ("10", "9", "cat")),
        ({"Cat": 0, "cat": 1, "Ærø": 2}, ("Cat", "cat", "Ærø")),
        ({"a b": 0, "z.png": 1}, ("a b", "z.png")),
        ({" a": 0, "a": 1, "a\nb": 2}, ("' a'", "a", r"'a\nb'")),
        ({"caf\udce9": 1, "café": 0}, ("café", r"'caf\udce9'")),
    ],
)
def test_every_folder_is_a_class_of_its_own(tmp_path, data_dir, ids, names):
    root = write(tmp_path / "p", {f"{folder}/1.png": PNG for folder in ids})
    assert classes(root, data_dir) == (names, [ids[folder] for folder in sorted(ids)])


def test_classes_that_are_links(tmp_path, data_dir):
    elsewhere = write(tmp_path / "elsewhere", {"x.png": PNG})
    root = write(tmp_path / "p", {"cat/1.png": PNG})
    (root / "dog").symlink_to(elsewhere)
    (root / "dog" / "up").symlink_to(root)
    assert classes(root, data_dir) == (("cat", "dog"), [0, 1])


def test_what_systems_leave_behind_is_no_class(tmp_path, data_dir, caplog):
    names = ("cat/1.png", "dog/A.PNG", ".ipynb_checkpoints/1.png", "__MACOSX/cat/._1.png", "cat/._1.png")
    root = write(tmp_path / "p", dict.fromkeys(names, PNG))
    (root / "empty").mkdir()
    assert classes(root, data_dir) == (("cat", "dog"), [0, 1])
    assert "folders without pictures are no classes: empty" in caplog.text


@pytest.mark.parametrize(
    ("rows", "names", "labels"),
    [
        ([2.0, 11.0, 0.0], tuple(map(str, range(12))), [2, 11, 0]),
        (["2.0", "11.0", "0"], tuple(map(str, range(12))), [2, 11, 0]),
        ([2, "2.0", 0], ("0", "1", "2"), [2, 2, 0]),
        ([1, 20240131, 1], ("1", "20240131"), [0, 1, 0]),
        ([999, 5, 5], tuple(map(str, range(1000))), [999, 5, 5]),
        ([1.5, 10.5, 2], ("1.5", "2", "10.5"), [0, 2, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (["nan", "pita", "nan"], ("nan", "pita"), [0, 1, 0]),  # bread
        (["²", "1", "1"], ("1", "²"), [1, 0, 0]),
    ],
)
def test_labels_of_a_table(tmp_path, data_dir, rows, names, labels):
    table = jsonl(*({"file_name": f"{i}.png", "label": label} for i, label in enumerate(rows)))
    root = write(tmp_path / "p", {"metadata.jsonl": table} | {f"{i}.png": PNG for i in range(len(rows))})
    assert classes(root, data_dir) == (names, labels)


ODD = 'a "red", \u2028 door\x85, and\x0b\x0c\x1c\n\n  more'


@pytest.mark.parametrize(
    ("name", "table", "expected"),
    [
        ("metadata.jsonl", "\ufeff" + jsonl({"file_name": "1.png", "text": "a"}), [["a"]]),
        ("METADATA.JSONL", jsonl({"file_name": "1.png", "text": "a"}).replace("\n", "\r\n\r\n"), [["a"]]),
        ("metadata.jsonl", f'{{"file_name": "1.png", "text": {json.dumps(ODD, ensure_ascii=False)}}}', [[ODD]]),
        ("metadata.jsonl", jsonl({"file_name": "1.png", "text": ["a", "", "b", " ", None]}), [["a", "b"]]),
        ("metadata.jsonl", jsonl({"file_name": "1.png", "captions": ["b", "a"]}), [["b", "a"]]),
        ("metadata.jsonl", jsonl({"file_name": "1.png", "text": 42}), [["42"]]),
        ("metadata.jsonl", jsonl({"file_name": "1.png", "text": None, "caption": "a"}), [["a"]]),
        ("metadata.jsonl", jsonl({"file_name": "1.png", "text": ""}), [[""]]),
        ("metadata.jsonl", jsonl({"file_name": "1.png", "text": ["", ""]}), [[""]]),
        ("metadata.jsonl", jsonl({"file_name": "./x/../1.png", "text": "a" * 140_000}), [["a" * 140_000]]),
        (
            "metadata.jsonl",
            jsonl(*({"file_name": f"{n}.png", "text": text} for n, text in ((2, "x"), (1, "a"), (2, "y")))),
            [["x", "y"], ["a"]],
        ),
        ("metadata.csv", "\ufefffile_name,text\r\n1.png,a\r\n2.png,b\r\n", [["a"], ["b"]]),
        ("metadata.csv", 'file_name , text\n\n1.png,"a, ""b"""\n,\n2.png,42\n', [['a, "b"'], ["42"]]),
        ("metadata.csv", 'text,file_name\n"one\ntwo\r\nthree",1.png\nb,2.png\n', [["one\ntwo\r\nthree"], ["b"]]),
        ("metadata.csv", f'file_name,text\n1.png,"{ODD.replace(chr(34), chr(34) * 2)}"\n', [[ODD]]),
        ("metadata.csv", f'file_name,text\n1.png,{"a" * 140_000}\n', [["a" * 140_000]]),
        ("Metadata.CSV", "file_name,text\r1.png,a\r2.png,b", [["a"], ["b"]]),
        ("metadata.csv", "file_name,text,,\n1.png,a,,\n", [["a"]]),
        ("metadata.csv", "file_name,text\n1.png,a\n1.png,b\n", [["a", "b"]]),
        ("1.txt", "\ufeffa\r\nb \u2028 c\n\n", [["a", "b \u2028 c"]]),
        ("1.txt", "", [[""]]),
    ],
)  # fmt: skip
def test_captions(tmp_path, data_dir, name, table, expected):
    files = {"1.png": PNG, name: table}
    if len(expected) > 1:
        files["2.png"] = PNG
    assert captions(write(tmp_path / "p", files), data_dir) == expected


def test_a_table_tells_labels_and_the_files_beside_it_captions(tmp_path, data_dir):
    files = TWO | {"metadata.csv": "file_name,label\n2.png,7\n1.png,0\n", "1.txt": "one", "2.txt": "two\nzwei"}
    root = write(tmp_path / "p", files)
    assert captions(root, data_dir) == [["two", "zwei"], ["one"]]
    assert classes(root, data_dir)[1] == [7, 0]


def test_empty_captions_are_counted(tmp_path, caplog):
    rows = [{"file_name": "1.png", "text": ["", "a"]}, {"file_name": "2.png", "text": " "}]
    scan(write(tmp_path, TWO | {"metadata.jsonl": jsonl(*rows)}))
    assert "left out 1 captions that are empty" in caplog.text
    assert "1 captions are empty" in caplog.text


def test_the_limit_of_csv_is_put_back(tmp_path):
    before = csv.field_size_limit()
    scan(write(tmp_path, {"1.png": PNG, "metadata.csv": f"file_name,text\n1.png,{'a' * 200_000}\n"}))
    assert csv.field_size_limit() == before


def test_one_table_above_the_folders_of_splits(tmp_path, data_dir):
    files = {"train/1.png": picture(1), "test/2.png": picture(2), "train/metadata.csv": "x"}
    table = "file_name,text\ntrain/1.png,a\ntest/2.png,b\n"
    root = write(tmp_path / "p", files | {"metadata.csv": table})
    assert (greys(load(root, data_dir)), greys(load(root, data_dir, "test"))) == ([1], [2])


@pytest.mark.parametrize("names", [("Train", "VALID"), ("TRAIN", "validation")])
def test_splits_are_splits_in_any_case(tmp_path, data_dir, names):
    root = write(tmp_path / "p", {f"{names[0]}/a/1.png": picture(1), f"{names[1]}/b/2.png": picture(2)})
    assert classes(root, data_dir) == (("a", "b"), [0])
    assert classes(root, data_dir, names[1].lower()) == (("a", "b"), [1])


def test_names_of_any_bytes(tmp_path, data_dir):
    root = write(tmp_path / "p", {"new\nline.png": picture(1), "caf\udce9.png": picture(2)})
    assert sorted(greys(load(root, data_dir))) == [1, 2]


def table(text: str | bytes, name: str = "metadata.csv", **files) -> dict:
    return TWO | {name: text} | files


def rows(*lines: str) -> dict:
    return table("\n".join(lines), "metadata.jsonl")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": "x"}, "no pictures in"),
        ({"z.png/notes.txt": "x", ".a.png": PNG}, "no pictures in"),
        ({"train/1.png": b"", "test/notes.txt": "x"}, "no pictures in .*test"),
        ({"1.png": b"", "cat/2.png": b""}, "1 of 2 pictures have no label, such as .*1.png"),
        ({"test/1.png": PNG, "cat/1.png": PNG}, "test are names of splits, and there are pictures beside them: 'cat'"),
        ({"train/1.png": PNG, "2.png": PNG}, "train are names of splits, .*: '2.png'"),
        ({"train/1.png": PNG, "Train/2.png": PNG}, "has both Train and train"),
        ({"metadata.jsonl": jsonl({"file_name": "1.png"})}, "row 1: file_name='1.png' is no file"),
        ({"1.png": b"", "metadata.jsonl": jsonl({"text": "x"})}, r"row 1: no file_name \(columns: text\)"),
        ({"1.png": b"", "metadata.jsonl": '{"file_name": "1.png"\n'}, "line 1: not JSON"),
        ({"metadata.jsonl": "", "metadata.csv": ""}, "has both"),
        ({"metadata.jsonl": "", "Metadata.CSV": ""}, "has both"),
        (table("x", "metadata.parquet"), "metadata.parquet: tables are metadata.jsonl or metadata.csv"),
        (table("file_name,text\n1.png,x\n2.png\n"), "1 of 2 pictures have no caption, such as .*2.png"),
        (TWO | {"1.txt": "x"}, "1 of 2 pictures have no caption, such as .*2.png"),
        (table('file_name,text\n1.png,"x\n2.png,y\n'), "line 2: no CSV .unexpected end of data"),
        (table('file_name,text\n1.png,"x\n2.png,y"\n'), "line 2: a quote is not closed; .* the row of '2.png'"),
        (table('text,file_name\n"x,1.png\ny,2.png\nz",1.png\n'), "line 2: a quote is not closed"),
        (table('file_name,text\n1.png,"x" y\n'), "line 2: no CSV"),
        (table("file_name,text\n1.png,a\n2.png,b, c\n"), "line 3: 3 cells, where the header has 2"),
        (table("file_name,text,text\n1.png,a,b\n"), "has the column text 2 times"),
        (table("file_name,file_name\n1.png,a\n"), "has the column file_name 2 times"),
        (table("file_name;text\n1.png;a\n"), r"no column file_name \(columns: file_name;text\)"),
        (table("file_name,text\n,a\n"), "line 2, row 1: no file_name"),
        (table("file_name,label\n1.png,cat\n1.png,dog\n"), "line 3: .*1.png' is also in line 2"),
        (table("file_name\n1.png\n1.png\n"), "line 3: .*1.png' is also in line 2"),
        (table("file_name\n../1.png\n"), "file_name='../1.png' leads out of"),
        (table("file_name\nx/../../1.png\n"), "leads out of"),
        (table("file_name\n/etc/hostname\n"), "leads out of"),
        (table("file_name\n3.png\n"), "line 2, row 1: file_name='3.png' is no file in"),
        (table("file_name\n" + "a" * 5000 + ".png\n"), "is no file in"),
        (table("file_name\n.\n"), "is no file in"),
        (table("file_name,label\n1.png,1\n2.png,nan\n"), "label=nan among numbers"),
        (table("file_name,label\n1.png,1\n2.png,\n"), "1 of 2 pictures have no label"),
        (table('file_name,label\n1.png,"[1, 2]"\n2.png,1\n'), "a picture has one label"),
        (table("file_name,text\n1.png,gr\xfcn\n".encode("latin-1")), "line 2: is not UTF-8, but perhaps Latin-1"),
        (table("file_name,text\n1.png,x\n".encode("utf-16")), "is UTF-16; save it as UTF-8"),
        (table("file_name,text\n1.png,x\n".encode("utf-16-be")), "zero bytes, as UTF-16 has"),
        (table("file_name,text\n1.png,x\n".encode("utf-32")), "is UTF-32"),
        (TWO | {"1.txt": b"\xff\xfea\0", "2.txt": "b"}, "1.txt: is UTF-16"),
        (TWO | {"1.txt": b"gr\xfcn", "2.txt": "b"}, "1.txt, line 1: is not UTF-8"),
        (rows('["1.png", "x"]'), "line 1: is a list, where each line is an object"),
        (rows('{"file_name": "1.png"}', '"2.png"'), "line 2: is a str"),
        (rows("3"), "line 1: is a int"),
        (rows('{"file_name": 1}'), "file_name=1 must be text"),
        (rows('{"file_name": ["1.png"]}'), "must be text"),
        (rows('{"file_name": "1.png", "text": "a", "text": "b"}'), "has a name twice"),
        (rows('{"file_name": "1.png", "text": {"raw": "a"}}'), "captions are text, or a list of texts"),
        (rows('{"file_name": "1.png", "text": true}'), "captions are text"),
        (rows('{"file_name": "1.png", "text": [["a"]]}'), "captions are text"),
        (rows('{"file_name": "1.png", "text": "\\ud800"}'), "half of a surrogate pair"),
        (rows('{"file_name": "1.png", "text": NaN}', '{"file_name": "2.png", "text": "a"}'), "1 of 2 .* no caption"),
        (rows('{"file_name": "1.png", "text": []}', '{"file_name": "2.png", "text": "a"}'), "1 of 2 .* no caption"),
        (rows('{"file_name": "1.png", "label": NaN}', '{"file_name": "2.png", "label": 1}'), "1 of 2 .* no label"),
        (rows('{"file_name": "1.png", "label": [1]}'), r"label=\[1\]: a picture has one label"),
        (rows('{"file_name": "1.png", "label": {"a": 1}}'), "a picture has one label"),
        (rows('{"file_name": "1.png", "label": Infinity}'), "a picture has one label"),
        (rows("[" * 100_000), "line 1: not JSON"),
    ],
)
def test_bad_folders_are_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        Folder(folder=str(write(tmp_path / "p", files)), data_dir=str(tmp_path / "data"))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data.folder='.*nowhere': there is no such directory"):
        sources.prepare("folder", str(tmp_path), str(tmp_path / "nowhere"))


def test_a_negative_label_is_refused(tmp_path):
    files = {"1.png": picture(1), "metadata.jsonl": jsonl({"file_name": "1.png", "label": -1})}
    with pytest.raises(DataError, match="label=-1 is out of range"):
        sources.prepare("folder", str(tmp_path / "data"), str(write(tmp_path / "p", files)))


def batches(root, data_dir, **options):
    config = DataConfig("folder", data_dir, image_size=8, folder=str(root), **options)
    return make_dataset(config, global_batch=16)


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_pictures_than_a_batch(tmp_path, data_dir, count):
    dataset = batches(write(tmp_path / "p", {f"{i}.png": picture(i) for i in range(count)}), data_dir)
    seen = np.concatenate([dataset.batch(step)["index"] for step in range(3)])
    assert np.bincount(seen, minlength=count).tolist() == [48 // count] * count


def test_a_class_of_no_picture(tmp_path, data_dir):
    root = write(tmp_path / "p", {"0/1.png": PNG, "2/1.png": PNG})
    dataset = batches(root, data_dir)
    assert dataset.info.num_classes == 3
    assert set(dataset.batch(0)["label"]) == {0, 2}


def test_one_sample_is_unreadable_once_however_often_it_is_replaced(tmp_path, data_dir):
    files = {f"{i:02}.png": b"<html>" for i in range(15)} | {f"{i}.png": PNG for i in range(15, 20)}
    dataset = batches(write(tmp_path / "p", files), data_dir, max_bad_fraction=1.0)
    batch = next(iter(dataset))
    assert set(batch["index"]) <= set(range(15, 20))
    assert 0 < dataset.reads.bad <= dataset.reads.seen == 16


def test_a_folder_of_unreadable_pictures_says_so(tmp_path, data_dir):
    dataset = batches(write(tmp_path / "p", {"1.png": b"", "2.png": b"<html>"}), data_dir)
    with pytest.raises(BadDataError, match="all unreadable; the last: DataError: no picture that can be read, but"):
        next(iter(dataset))

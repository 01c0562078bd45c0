"""Directories of pictures, in the layouts of Hugging Face's imagefolder."""

import json

import numpy as np
import pytest

from tests.data.pictures import picture, write
from zigma_jax.data import images, sources
from zigma_jax.data.datasets.folder import scan


def load(root, data_dir, split="train") -> sources.Source:
    return sources.PreparedSource(sources.prepare("folder", data_dir, str(root)), split)


def greys(source) -> list[int]:
    return [np.asarray(images.decode(source.picture(source[i])))[0, 0, 0] for i in range(len(source))]


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


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": "x"}, "no pictures in"),
        ({"train/1.png": b"", "test/notes.txt": "x"}, "no pictures in .*test"),
        ({"1.png": b"", "cat/2.png": b""}, "1 of 2 pictures have no label, such as .*1.png"),
        ({"metadata.jsonl": jsonl({"file_name": "1.png"})}, "row 1: file_name='1.png' is no file"),
        ({"1.png": b"", "metadata.jsonl": jsonl({"text": "x"})}, r"row 1: no file_name \(columns: text\)"),
        ({"1.png": b"", "metadata.jsonl": '{"file_name": "1.png"\n'}, "line 1: not JSON"),
        ({"metadata.jsonl": "", "metadata.csv": ""}, "has both"),
        (
            {"1.png": b"", "2.png": b"", "metadata.csv": "file_name,text\n1.png,x\n2.png\n"},
            "1 of 2 pictures have no caption, such as .*2.png",
        ),
    ],
)
def test_bad_folders_are_refused(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        scan(write(tmp_path, files))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data.folder='.*nowhere': there is no such directory"):
        sources.prepare("folder", str(tmp_path), str(tmp_path / "nowhere"))


def test_a_negative_label_is_refused(tmp_path):
    files = {"1.png": picture(1), "metadata.jsonl": jsonl({"file_name": "1.png", "label": -1})}
    with pytest.raises(ValueError, match="label=-1 is out of range"):
        sources.prepare("folder", str(tmp_path / "data"), str(write(tmp_path / "p", files)))

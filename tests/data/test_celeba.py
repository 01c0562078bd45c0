"""CelebA from the files of its authors, made up in their layout."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from absl import logging

from tests.data.pictures import picture, write
from zigma_jax.data.config import DataConfig
from zigma_jax.data.pictures.decode import decode
from zigma_jax.data.sources import open_source
from zigma_jax.errors import DataError

NAMES = [f"{i:06}.jpg" for i in range(1, 5)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four pictures, of which two are for training; every other face smiles."""
    smiling = [1, -1, 1, -1]
    rows = [f"{name} {-1:2} {value:2}" for name, value in zip(NAMES, smiling, strict=True)]
    write(
        tmp_path / "celeba",
        {
            "list_attr_celeba.txt": "\r\n".join(["4", "Male Smiling ", *rows, ""]),
            "list_eval_partition.txt": "".join(f"{name} {split}\n" for name, split in zip(NAMES, "0012", strict=True)),
        },
    )
    with zipfile.ZipFile(tmp_path / "celeba" / "img_align_celeba.zip", "w") as archive:
        archive.writestr("img_align_celeba/", "")
        for i, name in enumerate(NAMES):
            archive.writestr(f"img_align_celeba/{name}", picture(40 * i, (218, 178), "JPEG"))
            archive.writestr(f"__MACOSX/img_align_celeba/._{name}", b"x")
    return tmp_path / "celeba"


def load(folder: Path, split: str = "train", **options):
    return open_source(DataConfig("celeba", str(folder.parent / "data"), split, folder=str(folder), **options))


def greys(source) -> list[int]:
    return [round(float(np.asarray(decode(source.picture(source[i]))).mean()) / 40) for i in range(len(source))]


def test_pictures_and_splits_from_the_archive(folder):
    assert [greys(load(folder, split)) for split in ("train", "validation", "test")] == [[0, 1], [2], [3]]
    info = load(folder).info
    assert (info.num_classes, info.has_captions) == (0, False)
    assert "non-commercial" in info.licence


def test_an_attribute_can_be_the_class(folder):
    source = load(folder, label_column="attributes/Smiling")
    assert source.info.class_names == ("not Smiling", "Smiling")
    assert [source.label(source[i]) for i in range(2)] == [1, 0]
    with pytest.raises(DataError, match=r"data.label_column='Smiling'.* it has attributes/Male, attributes/Smiling"):
        load(folder, label_column="Smiling")


def test_unpacked_and_with_the_tables_of_kaggle(folder):
    with zipfile.ZipFile(folder / "img_align_celeba.zip") as archive:
        archive.extractall(folder / "img_align_celeba")  # Kaggle's has the folder twice
    for name in ("img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt"):
        (folder / name).unlink()
    write(
        folder,
        {
            "list_attr_celeba.csv": "\n".join(["image_id,Male,Smiling", *(f"{name},-1,1" for name in NAMES)]),
            "list_eval_partition.csv": "\n".join(["image_id,partition", *(f"{name},0" for name in NAMES)]),
        },
    )
    source = load(folder, label_column="attributes/Smiling")
    assert greys(source) == [0, 1, 2, 3]
    assert source.label(source[0]) == 1


def test_a_part_of_the_pictures_without_attributes(folder, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    (folder / "list_attr_celeba.txt").unlink()
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        archive.writestr(NAMES[3], picture(120, (20, 20), "JPEG"))
    assert greys(load(folder, "test")) == [3]
    assert any("3 of its 4 pictures are not in" in text and "such as 000001.jpg" in text for text in said)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "img_align_celeba.zip",
            None,
            "neither img_align_celeba.zip nor img_align_celeba.rar nor img_align_celeba/ in it. img_align_celeba.zip, ",
        ),
        ("img_align_celeba.zip", b"<!DOCTYPE html>", r"is a web page \(the drive's notice of its quota"),
        ("img_align_celeba.zip", b"PK\3\4 cut off", "is no whole zip"),
        ("list_eval_partition.txt", None, "there is no list_eval_partition.txt or .csv in it"),
        ("list_eval_partition.txt", b"000001.jpg 7\n", "000001.jpg is in split '7', which must be 0, 1 or 2"),
        ("list_eval_partition.txt", b"", "there is no row in it"),
        ("list_eval_partition.txt", b"999999.jpg 0\n", "none of its 1 pictures is in"),
        (
            "list_attr_celeba.txt",
            b"1\nMale Smiling\n000001.jpg 1\n",
            "000001.jpg has 1 cells, where there are 2 headings",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_named(folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(folder)

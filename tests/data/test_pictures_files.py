"""Which files are pictures, and errors that name them."""

import os

import numpy as np
import pytest

from tests.data.pictures import picture, write
from zigma_jax.data.pictures.files import find_pictures, read_picture, read_size
from zigma_jax.errors import DataError


def names(root) -> list[str]:
    return [os.path.relpath(path, root) for path in find_pictures(root)]


def test_hidden_files_and_those_of_the_system_are_left_out(tmp_path):
    files: dict[str, bytes | str] = dict.fromkeys(
        (
            "b.png", "a.JPG", "A.PNG", "deep/c.Jpeg", "deep/er/d.webp",
            ".hidden.png", "._a.JPG", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "__MACOSX/._a.png", "deep/.x/a.png",
            "@eaDir/a.png", "$RECYCLE.BIN/a.png", ".DS_Store", "Thumbs.db", "notes.txt", "png", "a.png.part",
        ), b"x",
    )  # fmt: skip
    assert names(write(tmp_path, files)) == ["A.PNG", "a.JPG", "b.png", "deep/c.Jpeg", "deep/er/d.webp"]


def test_a_hidden_directory_may_be_given(tmp_path):
    assert names(write(tmp_path / ".cache", {"a.png": b"x"})) == ["a.png"]


def test_directories_are_no_pictures_whatever_their_name(tmp_path):
    assert names(write(tmp_path, {"z.png/a.png": b"x", "y.jpg/notes.txt": b"x"})) == ["z.png/a.png"]


def test_links_are_followed_once_and_never_in_a_circle(tmp_path, caplog):
    root = write(tmp_path / "root", {"cat/1.png": b"x"})
    elsewhere = write(tmp_path / "elsewhere", {"2.png": b"x"})
    for name, target in {
        "dog": elsewhere, "wolf": elsewhere, "3.png": elsewhere / "2.png",  # both classes have the picture
        "cat/up": root, "cat/self": root / "cat", "circle": root, "elsewhere/back": elsewhere,
        "lost.png": root / "nowhere", "loop.png": root / "loop.png", "loop": root / "loop",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(target)
    found = ["3.png", "cat/1.png", "dog/2.png", "elsewhere/back/2.png", "wolf/2.png"]
    assert names(root) == found
    assert "left out 2 names of pictures that lead to no file" in caplog.text
    assert "3 links to a directory that is there already" in caplog.text


def test_pictures_that_are_not_read_are_left_out_with_a_word(tmp_path, caplog):
    assert names(write(tmp_path, {"a.png": b"x", "b.HEIC": b"x", "c.heic": b"x"})) == ["a.png"]
    assert "left out 2 .heic files, which are not read" in caplog.text


@pytest.mark.skipif(os.getuid() == 0, reason="root may list everything")
def test_a_directory_that_cannot_be_listed_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match="closed: cannot be listed"):
        find_pictures(tmp_path)


def test_names_of_any_bytes(tmp_path):
    odd = os.fsencode(tmp_path) + b"/new\nline \xff.png"
    with open(odd, "wb") as file:
        file.write(picture(7))
    (path,) = find_pictures(tmp_path)
    assert read_picture(path, (2, 2)).tolist() == np.full((2, 2, 3), 7).tolist()


@pytest.mark.parametrize("read", [lambda path: read_picture(path, (8, 8)), read_size])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a.png: no picture that can be read, but an empty file"),
        (b"<html>", r"a.png: no picture that can be read, but an HTML page"),
        (b"P5 20000 20000 255\n", r"a.png: cannot be read \(DecompressionBombError"),
    ],
)
def test_errors_name_the_file(tmp_path, read, content, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, {"a.png": content}) / "a.png")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.png: cannot be read"):
        read_picture(tmp_path / "nowhere.png", (8, 8))

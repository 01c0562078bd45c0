"""The program that prepares a data set ahead of a run."""

import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from tests.data.pictures import picture, write
from zigma_jax import prepare
from zigma_jax.training.preview import GAP


def run(**options) -> None:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**options):
        prepare.main(["prepare"])


def test_it_says_what_there_is_and_draws_a_sheet(data_dir, tmp_path, capsys):
    run(name="avatars/tiny", data_dir=data_dir, preview=f"{tmp_path}/new/sheet.png", preview_pixels=32)
    printed = capsys.readouterr().out
    assert f"avatars/tiny/1.0.0 in {data_dir}/avatars/tiny/1.0.0" in printed
    assert "train: 64 pictures" in printed
    assert "test: 16 pictures" in printed
    assert "classes: 20, captions" in printed
    assert "licence: MIT" in printed
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.size == (16 * (32 + GAP) + GAP, 4 * (32 + GAP) + GAP)


def test_it_names_unreadable_pictures_and_draws_the_others(data_dir, tmp_path, capsys):
    folder = write(tmp_path / "p", {"1.png": b"no picture", "2.png": picture(2)})
    run(name="folder", folder=str(folder), data_dir=data_dir, preview=f"{tmp_path}/sheet.png")
    assert "record 0 is unreadable: UnidentifiedImageError" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").is_file()


def test_it_ends_with_the_rule_that_was_broken(tmp_path):
    with pytest.raises(SystemExit, match=r"error: data.folder='/nowhere': there is no such directory"):
        run(name="folder", folder="/nowhere", data_dir=str(tmp_path))

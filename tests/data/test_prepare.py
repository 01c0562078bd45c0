"""The program that prepares a data set ahead of a run."""

from PIL import Image

from tests import programs
from tests.data.pictures import picture, write
from zigma_jax.training.preview import GAP


def run(**options) -> tuple[int | None, str]:
    flags = [f"--{name.replace('__', '.')}={value}" for name, value in options.items()]
    return programs.run("zigma_jax.prepare", *flags)


def test_it_says_what_there_is_and_draws_a_sheet(data_dir, tmp_path):
    code, printed = run(name="avatars/tiny", data_dir=data_dir, preview=f"{tmp_path}/new/sheet.png", preview_pixels=32)
    assert code == 0, printed
    assert f"avatars/tiny/1.0.0 in {data_dir}/avatars/tiny/1.0.0" in printed
    assert "train: 64 pictures" in printed
    assert "test: 16 pictures" in printed
    assert "classes: 20, captions" in printed
    assert "licence: MIT" in printed
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.size == (16 * (32 + GAP) + GAP, 4 * (32 + GAP) + GAP)


def test_it_names_unreadable_pictures_and_draws_the_others(data_dir, tmp_path):
    folder = write(tmp_path / "p", {"1.png": b"no picture", "2.png": picture(2)})
    code, printed = run(name="folder", folder=str(folder), data_dir=data_dir, preview=f"{tmp_path}/sheet.png")
    assert code == 0, printed
    assert "record 0 is unreadable: DataError: no picture that can be read, but text" in printed
    assert (tmp_path / "sheet.png").is_file()


def test_it_ends_with_the_rule_that_was_broken(tmp_path):
    code, printed = run(name="folder", folder="/nowhere", data_dir=str(tmp_path))
    assert code == 1
    assert printed.splitlines()[-1].startswith("error: data.folder='/nowhere': there is no such directory")


def test_a_name_beside_a_configuration_is_refused():
    code, printed = run(config="configs/quickstart.py", name="emoji")
    assert code == 1
    assert printed.splitlines()[-1] == "error: --name is given beside --config: say --config.data.name instead"

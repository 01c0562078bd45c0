"""The share of samples that show what was asked for: from a model and its data set to the table."""

import json
import shutil

import numpy as np
import pytest

import zigma_jax as zj
from tests import programs
from tests.random_model import random_model
from tests.training.test_evaluation import make_model
from tests.training.tiny_text import write_bert
from zigma_jax.data.attributes import CLASS, UNSEEN
from zigma_jax.data.config import DataConfig
from zigma_jax.errors import ConfigError
from zigma_jax.training.adherence import asked_of_classes, asked_of_text, open_reader, table
from zigma_jax.training.weights import save_weights


def options(data_dir, tmp_path):
    shown = [f"--source={tmp_path}/model.safetensors", "--dataset=avatars/tiny", f"--data_dir={data_dir}"]
    return [*shown, "--adherence", "--num=24", "--method=euler", "--steps=2"]


def test_of_classes(data_dir, tmp_path):
    save_weights(make_model(), tmp_path / "model.safetensors")
    code, printed = programs.run("zigma_jax.evaluate", *options(data_dir, tmp_path), "--labels=3,5,20")
    assert code == 0, printed
    results = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["adherence"]
    assert (results["count"], results["labels"]) == (24, "3,5,20")
    (row,) = results["attributes"].values()
    assert list(row) == ["asked", "guidance 1", "guidance 3", "guidance 5", "probe", "chance"]
    assert row["asked"] == 16  # 20 is the null class
    line = next(line for line in printed.splitlines() if line.startswith(CLASS))
    assert line.split()[1:4] == ["16", f"{100 * row['guidance 1']:.1f}", "%"]
    assert (tmp_path / "evaluation" / "adherence.png").exists()


def test_of_captions(data_dir, tmp_path):
    model = zj.ZigMaConfig(sample_shape=(8, 8, 3), patch_size=4, hidden_size=8, depth=1, scan="zigzag2", context_size=8)
    save_weights(random_model(model), tmp_path / "model.safetensors")
    encoder = f"--text_encoder={write_bert(tmp_path / 'bert')}"
    code, printed = programs.run("zigma_jax.evaluate", *options(data_dir, tmp_path), encoder)
    assert code == 0, printed
    rows = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["adherence"]["attributes"]
    assert rows["glasses"]["asked"] == rows["top"]["asked"] == 24
    assert 0 < rows["mouth"]["asked"] < 24
    assert CLASS not in rows


def test_pictures_that_show_what_is_asked_for_and_others(data_dir):
    """Held-out pictures, as the samples of a perfect model, score what the probe does; what is not asked counts not."""
    from zigma_jax.training.adherence import _HELD_OUT, _pictures

    data = DataConfig("avatars/tiny", str(data_dir), image_size=32)
    reader, held_out = open_reader(data)
    images, values = _pictures(DataConfig("avatars/tiny", str(data_dir), "test", image_size=32), held_out, _HELD_OUT)
    assert reader.shares(images, values) == pytest.approx(dict(reader.accuracy))
    nothing = {"glasses": np.full(len(images), UNSEEN)}
    assert reader.shares(images, nothing) == {}
    rows = table(reader, {3.0: reader.shares(images, values)}, values)
    assert rows["glasses"]["guidance 3"] == rows["glasses"]["probe"]
    captions, asked = asked_of_text(held_out, 5)
    assert len(captions) == len(asked["glasses"]) == 5
    assert asked_of_classes(np.array([3, 20]), 20)[CLASS].tolist() == [3, UNSEEN]


def test_sets_that_a_probe_cannot_learn(tmp_path, data_dir):
    from PIL import Image

    for number in range(4):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "flat" / f"{number}.png")
    data = DataConfig("folder", str(tmp_path / "data"), image_size=8, folder=str(tmp_path / "flat"))
    with pytest.raises(ConfigError, match="has neither classes nor attributes for a probe to learn"):
        open_reader(data)
    for name in "ab":
        shutil.copytree(tmp_path / "flat", tmp_path / "classes" / name)
    data = DataConfig("folder", str(tmp_path / "data"), image_size=8, folder=str(tmp_path / "classes"))
    with pytest.raises(ConfigError, match="has no split test or validation"):
        open_reader(data)

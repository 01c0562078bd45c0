"""A run on captions from its first step to pictures of prompts, by the programs."""

import json

import jax
import numpy as np
import pytest

from tests import programs
from tests.training.test_conditions import CLASSLESS, text_config
from tests.training.test_train import leaves
from tests.training.tiny import tiny_flags
from tests.training.tiny_text import write_bert
from zigma_jax.train import train
from zigma_jax.training.checkpoint import Checkpointer
from zigma_jax.training.prompts import captions_of, held_out
from zigma_jax.training.weights import load_workdir, params_of

pytestmark = pytest.mark.slow  # programs from the first step to the pictures

SAMPLE = """
import sys
from pathlib import Path
from absl import flags
from zigma_jax import programs, sample
for line in Path(sys.argv[1]).read_text().splitlines():
    for name in flags.FLAGS: flags.FLAGS[name].unparse()
    try:
        programs.parse_flags(["sample", *line.split("|")])
        sample.main(["sample"])
        print("answer: done")
    except SystemExit as error:
        print("answer:", str(error).splitlines()[0])
"""


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """The workdir of one step, its configuration, and the folder of its encoder and another one."""
    folder = tmp_path_factory.mktemp("text")
    place = write_bert(folder / "bert")
    write_bert(folder / "other", seed=1)
    config = text_config(data_dir, place, text__cache="step", train__steps=1, train__batch_size=8, model__depth=1)
    assert train(config, folder / "run")
    return folder / "run", config, folder


def test_the_encoder_is_not_in_the_checkpoint_and_its_fingerprint_is(run):
    workdir, _, _ = run
    model, config, _ = load_workdir(workdir)
    with Checkpointer(workdir / "checkpoints") as checkpoints:
        extra = checkpoints.read_extra()
    assert extra["config"]["text"]["fingerprint"] == config.text.fingerprint != ""
    count = sum(leaf.size for leaf in jax.tree.leaves(params_of(model)))
    stored = sum(leaf.size for leaf in leaves(workdir, 1).values() if leaf.size > 1)
    single = sum(leaf.size == 1 for leaf in jax.tree.leaves(params_of(model)))
    assert stored == 4 * (count - single)  # parameters, their average, and Adam's two moments


def test_sample_needs_no_flag_for_the_encoder_of_a_workdir(run, tmp_path):
    workdir, config, folder = run
    model = f"--source={workdir}|--num=5|--guidance=2"
    lines = {
        f"{model}|--output={tmp_path}/captions": "done",
        f"{model}|--prompts=a man|--output={tmp_path}/man": "done",
        f"{model}|--prompts=a man|--prompts=no hair|--encode={tmp_path}/man|--output={tmp_path}/noise": "done",
        f"{model}|--prompts=a man|--text_encoder={folder}/bert|--output={tmp_path}/man": "done",
        f"{model}|--prompts=a man|--text_encoder={folder}/other": "error: text.encoder = ",
    }
    (tmp_path / "lines").write_text("\n".join(lines))
    (tmp_path / "sample.py").write_text(SAMPLE)
    code, printed = programs.run(tmp_path / "sample.py", f"{tmp_path}/lines")
    assert code == 0, printed
    answers = [line.removeprefix("answer: ") for line in printed.splitlines() if line.startswith("answer: ")]
    for answer, expected in zip(answers, lines.values(), strict=True):
        assert answer.startswith(expected), printed
    assert "give the same encoder" in answers[-1]
    assert f"{tmp_path}/man: holds these 5 samples already" in printed  # the same encoder: the same samples

    source = held_out(config.data)
    prompts = {
        name: [json.loads(line) for line in (tmp_path / name / "prompts.jsonl").read_text().splitlines()]
        for name in ("captions", "man", "noise")
    }
    assert [line["prompt"] for line in prompts["captions"]] == captions_of(source, len(source))[:5]
    assert prompts["man"][4] == {"file": "000004.png", "prompt": "a man", "negative": "", "guidance": 2, "seed": 0}
    assert [line["prompt"] for line in prompts["noise"]] == ["a man", "no hair", "a man", "no hair", "a man"]
    with np.load(tmp_path / "noise" / "noise.npz") as file:
        assert np.isfinite(file["noise"]).all()
        assert file["noise"].shape == (5, 8, 8, 3)


def test_a_converted_model_goes_on_with_its_captions(run, tmp_path):
    """A workdir at step 0 that training goes on from, and is bound to the encoder."""
    workdir, config, _ = run
    options = {"text__encoder": config.text.encoder, "text__cache": "step", "train__batch_size": 8, "model__depth": 1}
    options |= {"model__condition_scale": config.model.condition_scale}
    options = tiny_flags(config.data.data_dir, **CLASSLESS, **options)
    code, printed = programs.run("zigma_jax.convert", f"--source={workdir}", f"--target={tmp_path}/tuned", *options)
    assert code == 0, printed
    assert train(config, tmp_path / "tuned")

    code, printed = programs.run("zigma_jax.convert", f"--source={workdir}", f"--target={tmp_path}/model.safetensors")
    assert code == 0, printed
    assert f"  --text_encoder={config.text.encoder}" in printed

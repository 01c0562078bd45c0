"""The program: what it draws, where it stops and goes on, latents as pictures, and mistakes answered before work."""

import dataclasses
import json
import os
import signal
import time

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import zigma_jax as zj
from tests import programs
from tests.random_model import random_model
from tests.training.fake_autoencoder import PROGRAM, FakeAutoencoder
from tests.training.test_sampling import CONFIG, draw
from tests.training.tiny_text import write_bert
from zigma_jax.data.config import TextConfig
from zigma_jax.drawing import Autoguided
from zigma_jax.training.config import SampleConfig
from zigma_jax.training.decoding import Decoder
from zigma_jax.training.prompts import Prompts, open_text_encoder
from zigma_jax.training.sampling import make_encoder, make_sampler
from zigma_jax.training.sharding import make_mesh
from zigma_jax.training.weights import params_of, save_weights

TINY = zj.ZigMaConfig(sample_shape=(4, 4, 3), patch_size=2, hidden_size=8, depth=1, scan="zigzag2")
LATENT = dataclasses.replace(TINY, sample_shape=(4, 4, 4))


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG.model, scale=0.1)


def test_it_draws_and_encodes(model, tmp_path):
    """Pictures on 8 devices in one batch, as here on 1 in batches of 7; and samples back to their noise on 1 device."""
    save_weights(model, tmp_path / "model.safetensors")
    times = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    cfg = SampleConfig("rk4", steps=times, guidance=1.5, guidance_interval=(0.0, 0.95))
    options = ["--method=rk4", f"--steps={','.join(map(str, times))}", "--guidance=1.5", "--guidance_interval=0,0.95"]
    options += [f"--source={tmp_path}/model.safetensors"]

    asked = ["--num=9", "--batch=64", "--labels=3,5", f"--output={tmp_path}/out"]
    code, printed = programs.run("zigma_jax.sample", *options, *asked, devices=8)
    assert code == 0, printed
    assert len(list((tmp_path / "out").glob("0*.png"))) == 9
    drawn = dict(np.load(tmp_path / "out" / "samples.npz"))
    assert drawn["labels"].tolist() == [3, 5, 3, 5, 3, 5, 3, 5, 3]
    samples = draw(model, 9, 7, 1, labels=[3, 5], cfg=cfg)
    pictures = Decoder((8, 8, 3), make_mesh())(samples)
    assert np.abs(drawn["samples"].astype(int) - pictures).max() <= 1

    np.savez(tmp_path / "exact.npz", samples=samples, labels=drawn["labels"])
    code, printed = programs.run("zigma_jax.sample", *options, f"--encode={tmp_path}/exact.npz", "--batch=7")
    assert code == 0, printed
    encoded = dict(np.load(tmp_path / "noise" / "noise.npz"))
    assert encoded["labels"].tolist() == drawn["labels"].tolist()
    key = jax.random.fold_in(jax.random.key(0), 8)  # of seed 0 and the last sample
    np.testing.assert_allclose(encoded["noise"][8], jax.random.normal(key, (8, 8, 3)), atol=2e-3)


@pytest.mark.slow
def test_away_from_a_weaker_model(model, tmp_path):
    weak = random_model(dataclasses.replace(CONFIG.model, depth=1), scale=0.1)
    for name, each in (("model", model), ("weak", weak)):
        save_weights(each, tmp_path / f"{name}.safetensors")
    other = dataclasses.replace(CONFIG.model, num_classes=3)
    save_weights(random_model(other), tmp_path / "other.safetensors")
    options = [f"--source={tmp_path}/model.safetensors", "--method=heun", "--steps=4", "--num=3"]
    options += ["--autoguide_scale=2.5", f"--output={tmp_path}/out"]
    code, printed = programs.run("zigma_jax.sample", *options, f"--autoguide={tmp_path}/weak.safetensors")
    assert code == 0, printed
    cfg = SampleConfig("heun", steps=4)
    guided = Autoguided(model, weak, 2.5, (0.0, 1.0))
    pictures = Decoder((8, 8, 3), make_mesh())(draw(guided, 3, 3, 1, labels=[0, 1, 2], cfg=cfg))
    assert np.abs(np.load(tmp_path / "out" / "samples.npz")["samples"].astype(int) - pictures).max() <= 1
    code, printed = programs.run("zigma_jax.sample", *options, f"--autoguide={tmp_path}/other.safetensors")
    assert code == 1
    assert "other.safetensors: its num_classes is 3, and the model's is 20" in printed


def test_killed_and_stopped_by_ctrl_c_it_goes_on(tmp_path):
    """Nothing is drawn twice, and all is as in one go."""
    save_weights(random_model(TINY), tmp_path / "model.safetensors")
    options = [f"--source={tmp_path}/model.safetensors", "--num=999", "--batch=8", "--method=euler", "--steps=3"]
    code, printed = programs.run("zigma_jax.sample", *options, f"--output={tmp_path}/whole")
    assert code == 0, printed

    broken, output, ends = tmp_path / "broken", tmp_path / "printed", []
    for count, number in ((100, signal.SIGKILL), (400, signal.SIGINT)):
        process = programs.start(output, "zigma_jax.sample", *options, f"--output={broken}")
        while not (broken / f"{count:06d}.png").exists():
            assert process.is_alive(), output.read_text()
            time.sleep(0.01)
        assert process.pid
        os.kill(process.pid, number)
        process.join()
        ends.append((process.exitcode, json.loads((broken / "manifest.json").read_text())))
    (killed, before), (stopped, manifest) = ends
    assert (killed, stopped) == (-signal.SIGKILL, 128 + signal.SIGINT)
    assert 100 - 8 <= before["count"] < 400 <= manifest["count"] < 999
    assert not manifest["finished"]
    assert f"SIGINT: the first {manifest['count']} of 999 samples are in {broken}" in output.read_text()
    drawn = {f"{i:06d}.png": (broken / f"{i:06d}.png").stat().st_mtime_ns for i in range(manifest["count"])}

    code, printed = programs.run("zigma_jax.sample", *options, f"--output={broken}")
    assert code == 0, printed
    assert {name: (broken / name).stat().st_mtime_ns for name in drawn} == drawn
    whole, found = ({p.name: p.read_bytes() for p in path.iterdir()} for path in (tmp_path / "whole", broken))
    assert whole == found


@pytest.mark.slow
def test_latents_become_pictures(tmp_path):
    """Pictures, and the numbers that they were decoded from; and from pictures to noise."""
    model = random_model(LATENT, scale=0.1)
    save_weights(model, tmp_path / "model.safetensors")
    (tmp_path / "fake.py").write_text(PROGRAM)
    options = ["zigma_jax.sample", f"--source={tmp_path}/model.safetensors", "--method=rk4", "--steps=9", "--num=5"]
    options += ["--autoencoder=fake", "--batch=2"]
    code, printed = programs.run(tmp_path / "fake.py", *options, "--latents", f"--output={tmp_path}/out")
    assert code == 0, printed
    latents = np.load(tmp_path / "out" / "latents.npy")
    cfg = SampleConfig("rk4", steps=9)
    np.testing.assert_allclose(latents, draw(model, 5, 5, 8, cfg=cfg), rtol=1e-4, atol=1e-4)
    decoder = Decoder((4, 4, 4), make_mesh(), FakeAutoencoder.make())
    with np.load(tmp_path / "out" / "samples.npz") as file:
        assert file["samples"].shape == (5, 8, 8, 3)
        assert np.abs(file["samples"].astype(int) - decoder(latents)).max() <= 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["autoencoder"]["name"] == "fake"

    pictures = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    np.savez(tmp_path / "pictures.npz", samples=pictures)
    code, printed = programs.run(tmp_path / "fake.py", *options, f"--encode={tmp_path}/pictures.npz")
    assert code == 0, printed
    encode = make_encoder(nnx.graphdef(model), CONFIG.interpolant, cfg, make_mesh())
    with np.load(tmp_path / "noise" / "noise.npz") as file:
        expected = encode(params_of(model), decoder.encode(pictures), None)
        np.testing.assert_allclose(file["noise"], expected, rtol=1e-3, atol=1e-3)


TEXT = dataclasses.replace(TINY, context_size=8)


@pytest.mark.parametrize("method", ["heun", pytest.param("dopri5", marks=pytest.mark.slow)])
def test_the_empty_prompt_at_any_guidance_is_the_unconditional_sample(tmp_path, method):
    """To the bit; and words change the picture."""
    model, mesh = random_model(TEXT), make_mesh(1, jax.devices()[:1])
    encoder = open_text_encoder(TextConfig(str(write_bert(tmp_path))), 8)

    def sample(prompt, guidance, negative=""):
        prompts, numbers = Prompts(encoder, [prompt], negative), np.arange(5)
        cfg = SampleConfig(method, steps=5, guidance=guidance) if method == "heun" else SampleConfig(guidance=guidance)
        run = make_sampler(nnx.graphdef(model), CONFIG.interpolant, cfg, mesh, 0, prompts.null)
        return np.asarray(run(params_of(model), numbers, prompts(numbers)))

    unconditional = sample("a man", 0.0)
    for guidance in (0.0, 1.0, 3.0):
        np.testing.assert_array_equal(sample("", guidance), unconditional)
    words = sample("a man", 1.0)
    assert np.abs(words - unconditional).max() > 1e-2
    np.testing.assert_array_equal(sample("a woman", 3.0, negative="a woman"), sample("a woman", 1.0))
    assert np.abs(sample("a man", 3.0) - words).max() > 1e-2


def test_prompts(tmp_path):
    """Each in turn, of a flag or a line of a file; named in prompts.jsonl; and bound to the directory."""
    save_weights(random_model(TEXT), tmp_path / "model.safetensors")
    (tmp_path / "prompts.txt").write_bytes("a man, with glasses\r\na \u2028woman\n".encode())
    options = [f"--source={tmp_path}/model.safetensors", f"--text_encoder={write_bert(tmp_path / 'bert')}", "--num=5"]
    options += ["--method=euler", "--steps=3", "--guidance=2", "--negative=hair", f"--output={tmp_path}/out"]
    given = [f"--prompts={tmp_path}/prompts.txt", "--prompts=no hair, a man", "--prompts="]
    code, printed = programs.run("zigma_jax.sample", *options, *given)
    assert code == 0, printed
    lines = [json.loads(line) for line in (tmp_path / "out" / "prompts.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [
        "a man, with glasses",
        "a \u2028woman",
        "no hair, a man",
        "",
        lines[0]["prompt"],
    ]
    assert lines[4] == {
        "file": "000004.png",
        "prompt": lines[0]["prompt"],
        "negative": "hair",
        "guidance": 2,
        "seed": 0,
    }
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.size[0] > 3 * 160  # room for words

    code, printed = programs.run("zigma_jax.sample", *options, *given[::-1])
    assert code == 1
    assert "holds samples of other settings" in printed


MISTAKES = """
import sys
from pathlib import Path
from absl import flags
from zigma_jax import drawing, programs, sample
drawing.make_sampler = lambda *_: sys.exit("it went on to the work")
for line in Path(sys.argv[1]).read_text().splitlines():
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS: flags.FLAGS[name].unparse()
    try:
        programs.parse_flags(["sample", *line.split()])
        sample.main(["sample"])
    except SystemExit as error:
        print("answer:", str(error).splitlines()[0])
"""


def test_mistakes(model, tmp_path):
    save_weights(model, tmp_path / "model.safetensors")
    save_weights(random_model(LATENT), tmp_path / "latents.safetensors")
    save_weights(random_model(TEXT), tmp_path / "text.safetensors")
    text, encoder = f"--source={tmp_path}/text.safetensors", f"--text_encoder={write_bert(tmp_path / 'bert')}"
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "blank.txt").write_text("a man\n\na woman\n")
    (write_bert(tmp_path / "no_tokenizer") / "vocab.txt").unlink()
    source = f"--source={tmp_path}/model.safetensors"
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "000000.png").write_text("mine")
    expected = {
        f"{source} --output={tmp_path}/new": "it went on to the work",
        "": "error: --source is missing",
        f"{source} --output={tmp_path}/file": "file is a file, where a directory for the results is needed",
        f"{source} --output={tmp_path}/mine --overwrite": "holds 000000.png, and no manifest.json",
        f"{source} --seed=-1": "--seed=-1: must be at least 0 and less than 2**63",
        f"{source} --seed={2**70}": f"--seed={2**70}: must be at least 0 and less than 2**63",
        f"{source} --labels=1.5": "--labels=1.5: must be whole numbers",
        f"{source} --labels=21": "labels = [21]: must be in 0 … 20",
        f"{source} --guidance=nan": "sample.guidance",
        f"{source} --guidance=1e38": "sample.guidance",
        f"{source} --latents": "--latents: are what a model of latents draws",
        f"--source={tmp_path}/latents.safetensors": "--autoencoder=hf://stabilityai/sd-vae-ft-ema",
        f"{source} --method=sde_euler --encode={tmp_path}": "an SDE can't be run backwards",
        f"{text} {encoder} --prompts=man --output={tmp_path}/new": "it went on to the work",
        f"{source} --prompts=man": "is not conditioned on text (model.context_size = 0)",
        f"{source} --negative=man": "--negative: ",
        f"{text} --prompts=man": "does not say which text encoder it was trained with",
        f"{text} {encoder}": "--prompts is missing, and no captions are at hand",
        f"{text} {encoder} --prompts=man --labels=1": "is conditioned on text: give --prompts",
        f"{text} {encoder} --prompts={tmp_path}/empty.txt": "empty.txt: the file is empty",
        f"{text} {encoder} --prompts={tmp_path}/blank.txt": "blank.txt: line 2 is blank",
        f"{text} {encoder} --prompts={tmp_path}/typo.txt": "typo.txt: there is no such file",
        f"{text} --text_encoder={tmp_path}/no_tokenizer --prompts=man": "there is no tokenizer",
        f"{text} {encoder} --prompts=man --negative=woman": "--negative: is what guidance leads away from",
        f"{text} --text_encoder={write_bert(tmp_path / 'wide', width=16)} --prompts=man": "its tokens have 16 numbers",
        f"{text} --text_encoder={tmp_path}/mine --prompts=man": "config.json",
    }
    (tmp_path / "lines").write_text("\n".join(expected))
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    code, printed = programs.run(tmp_path / "mistakes.py", f"{tmp_path}/lines")
    assert code == 0, printed
    answers = [line for line in printed.splitlines() if line.startswith("answer: ")]
    assert len(answers) == len(expected), printed
    for (line, message), answer in zip(expected.items(), answers, strict=True):
        assert message in answer, line
    assert not (tmp_path / "samples").exists()

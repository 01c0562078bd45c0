"""The program: from a model or from pictures to the same numbers, and mistakes answered in a line, before work."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import zigma_jax as zj
from tests import programs
from tests.networks.test_clip import write_clip
from tests.random_model import random_model
from tests.training.fake_autoencoder import PROGRAM
from tests.training.test_evaluation import dataset_of, draws_of, make_model
from tests.training.tiny import tiny_config
from tests.training.tiny_text import write_bert
from zigma_jax.data.sources import prepare
from zigma_jax.networks import load_network
from zigma_jax.train import train
from zigma_jax.training.evaluation import features_path, labels_as_in, measure, reference_features
from zigma_jax.training.sample_directory import SampleDirectory
from zigma_jax.training.sharding import make_mesh
from zigma_jax.training.weights import save_weights

METRICS = ["kd-full", "precision", "is"]  # not fd: NumPy can take 10 s for singular covariances


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    prepare("avatars/tiny", str(directory))
    return directory


@pytest.mark.slow
def test_a_model_on_8_devices(data_dir, tmp_path):
    """What the program says of it, and what comes out here on one device in batches of 7, with a real network."""
    config, model = tiny_config(data_dir), make_model()
    save_weights(model, tmp_path / "model.safetensors")
    options = ["--dataset=avatars/tiny", f"--data_dir={data_dir}", "--batch=8", f"--metrics={','.join(METRICS)}"]
    options += ["--num=20", "--method=euler", "--steps=3", "--held_out=test"]
    code, printed = programs.run("zigma_jax.evaluate", f"--source={tmp_path}/model.safetensors", *options, devices=8)
    assert code == 0, printed
    assert "reference       64  dataset avatars/tiny/2.0.0, split train, pixels 8 x 8" in printed.splitlines()

    output = tmp_path / "evaluation"
    assert {path.name for path in output.iterdir()} == {"evaluation.json", "samples.png", "reference.png"}
    with Image.open(output / "samples.png") as grid:
        assert grid.size == (52, 42)  # 5 × 4 samples of 8 px, gaps of 2
    results = json.loads((output / "evaluation.json").read_text())
    assert [results[name]["count"] for name in ("samples", "test", "reference")] == [20, 16, 64]
    assert results["samples"]["labels"] == "as in the data set"
    assert results["sample"]["steps"] == 3
    numbers = results["samples"]["metrics"]
    row = next(line for line in printed.splitlines() if line.startswith("KD-full-effnet"))
    assert row.split() == [
        "KD-full-effnet",
        *(f"{results[name]['metrics']['KD-full-effnet']:.5g}" for name in ("samples", "test")),
    ]

    network, mesh = load_network("effnet"), make_mesh(1, jax.devices()[:1])
    assert results["network"] == {"name": "effnet", "sha256": network.fingerprint}
    source, originals = dataset_of(config)
    path = features_path(source, originals, network)
    assert path.exists()
    reference = reference_features(path, network, originals, 64, mesh)
    pictures = draws_of(model, config, mesh, 20, labels_as_in(source, config.model, 20)[0])
    assert measure(network, pictures, reference, METRICS, 7, mesh) == pytest.approx(numbers, rel=2e-3)
    assert results["test"]["metrics"]["KD-full-effnet"] < numbers["KD-full-effnet"]


@pytest.mark.slow
def test_a_model_of_text_is_measured_with_captions_of_the_data_set(data_dir, tmp_path):
    """One a picture, while it trains and afterwards; and how well samples fit them, by CLIP."""
    fields = {"model__num_classes": 0, "model__null_class": False, "model__context_size": 8, "sample__guidance": 2.0}
    fields |= {"text__encoder": str(write_bert(tmp_path / "bert")), "text__cache": str(tmp_path / "cache")}
    config = tiny_config(data_dir, train__steps=2, eval__every=2, eval__samples=8, eval__metrics=("kd-full",), **fields)
    assert train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "evaluations.json").read_text())

    options = [
        f"--source={tmp_path}/run",
        "--num=8",
        "--metrics=kd-full",
        "--split=test",
        f"--clip={write_clip(tmp_path)}",
    ]
    code, printed = programs.run("zigma_jax.evaluate", *options)
    assert code == 0, printed
    results = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    assert results["samples"]["prompts"] == "captions, one a picture"
    assert 0 <= results["samples"]["metrics"]["CLIP score"] <= 100


@pytest.mark.slow
def test_latents_beside_what_their_autoencoder_makes_of_the_data(data_dir, tmp_path):
    """Samples are decoded and compared with pictures; the column beside them is the floor, with its PSNR."""
    model = random_model(zj.ZigMaConfig(sample_shape=(4, 4, 4), patch_size=2, hidden_size=8, depth=1, scan="zigzag2"))
    save_weights(model, tmp_path / "model.safetensors")
    (tmp_path / "fake.py").write_text(PROGRAM)
    options = ["--dataset=avatars/tiny", f"--data_dir={data_dir}", "--batch=8", "--metrics=kd-full", "--num=12"]
    options += [f"--source={tmp_path}/model.safetensors", "--method=euler", "--steps=3", "--autoencoder=fake"]
    code, printed = programs.run(tmp_path / "fake.py", "zigma_jax.evaluate", *options, devices=2)
    assert code == 0, printed
    results = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert results["samples"]["metrics"].keys() == {"KD-full-effnet"}
    floor = results["autoencoder"]
    assert (floor["name"], floor["count"]) == ("fake", 12)
    assert floor["metrics"]["KD-full-effnet"] < results["samples"]["metrics"]["KD-full-effnet"]
    lines = printed.splitlines()
    assert ["samples", "autoencoder"] in [line.split() for line in lines]
    row = next(line for line in lines if line.startswith("PSNR"))
    assert row.split() == ["PSNR", f"{floor['metrics']['PSNR']:.5g}"]
    assert len(row) == len(next(line for line in lines if line.startswith("KD-full")))  # in its own column


MISTAKES = """
import sys
from pathlib import Path
from absl import flags
from zigma_jax import evaluate
for line in Path(sys.argv[1]).read_text().splitlines():
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS: flags.FLAGS[name].unparse()
    flags.FLAGS(["evaluate", *line.split()])
    evaluate.measure = evaluate.reference_features = lambda *_: sys.exit("it went on to the work")
    try:
        evaluate.main(["evaluate"])
    except SystemExit as error:
        print("answer:", error)
"""


def test_mistakes(data_dir, tmp_path):
    good, empty, mixed = tmp_path / "good", tmp_path / "empty", tmp_path / "mixed"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for directory in (good, empty, mixed):
        directory.mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(good / f"{i}.png")
        Image.fromarray(picture[: 8 - i]).save(mixed / f"{i}.png")
    save_weights(make_model(), tmp_path / "model.safetensors")
    np.savez(tmp_path / "other.npz", json=np.array(json.dumps(OTHER)), mu=np.zeros(3), sigma=np.eye(3))
    data = f"--dataset=avatars/tiny --data_dir={data_dir}"
    for name, count in (("drawn", 4), ("unfinished", 3)):
        with SampleDirectory(tmp_path / name, 4, {}, {"model": "toy"}, (8, 8, 3)) as directory:
            directory.add(pixels[:count])
            if count == 4:
                directory.finish(None)
    expected = {
        f"--source={tmp_path}/drawn {data}": "it went on to the work",
        f"--source={tmp_path}/unfinished {data}": "holds 3 of 4 samples, drawing them was interrupted",
        f"--source={tmp_path}/unfinished {data} --num=3": "it went on to the work",
        f"--source={good} {data} --output={tmp_path}/other.npz": "other.npz is a file, where a directory",
        f"--source={good} {data}": "it went on to the work",
        "": "error: --source is missing",
        f"--source={tmp_path}/nowhere {data}": "nowhere: neither a directory of pictures nor an .npz",
        f"--source={empty} {data}": "empty: there are no pictures in it",
        f"--source={mixed} {data}": "give one size to crop and resize all to (--image_size=64)",
        f"--source={good} {data} --num=5": "there are 4 pictures, and 5 are asked for",
        f"--source={good} {data} --metrics=fid": "metrics 'fid': unknown; known are fd, sfd, kd",
        f"--source={good} {data} --metrics=kd": "'kd': needs the features of at least 1000 samples, the set holds 4",
        f"--source={good} {data} --network=vgg": "network 'vgg': there are effnet",
        f"--source={good} {data} --network=inception": "network 'inception' needs a file of weights",
        f"--source={good}": "what to compare with?",
        f"--source={good} {data} --folder={good}": "--dataset and --folder: give one of them",
        f"--source={good} {data} --adherence": "good is no model; of pictures it is not known what was asked for",
        f"--source={tmp_path}/model.safetensors --adherence": "of which data set are the classes or captions?",
        f"--source={good} {data} --split=validation": "data.split='validation'",
        f"--source={good} {data} --reference={tmp_path}/other.npz": "is of the network 'inception', ",
        f"--source={tmp_path}/model.safetensors {data} --image_size=8": "a model draws at a size of its own",
        f"--source={tmp_path}/model.safetensors {data} --checkpoint=best": "is no workdir",
        f"--source={tmp_path}/model.safetensors {data} --labels=21": "labels = [21]: must be in 0 … 20",
        f"--source={tmp_path}/model.safetensors {data} --method=rk45": "'rk45': must be one of euler",
    }
    (tmp_path / "lines").write_text("\n".join(expected))
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    code, printed = programs.run(tmp_path / "mistakes.py", f"{tmp_path}/lines")
    assert code == 0, printed
    answers = [line for line in printed.splitlines() if line.startswith("answer: ")]
    assert len(answers) == len(expected), printed
    for (line, message), answer in zip(expected.items(), answers, strict=True):
        assert message in answer, line
    assert "the set has 4 samples for 1280 feature dimensions" in printed
    assert not (tmp_path / "evaluation").exists()


OTHER = {"format": 1, "network": "inception", "weights_sha256": "00", "count": 9, "image_size": [8, 8], "source": {}}

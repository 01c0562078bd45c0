"""Measuring a model's samples: any batches and devices, the very number asked for, mistakes before work; the best."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from tests.metrics.toy import ToyNetwork
from tests.random_model import random_model
from tests.training.fake_autoencoder import FakeAutoencoder
from tests.training.tiny import tiny_config
from tests.training.tiny_text import write_bert
from zigma_jax import train as train_program
from zigma_jax.data.config import TextConfig
from zigma_jax.data.pictures.pixels import to_float
from zigma_jax.data.pictures.sets import Pictures, of_dataset
from zigma_jax.data.pipeline import open_source
from zigma_jax.errors import ConfigError
from zigma_jax.metrics import FewSamplesWarning
from zigma_jax.train import train
from zigma_jax.training import evaluation
from zigma_jax.training.array_store import read_array
from zigma_jax.training.best import Evaluations, best_step
from zigma_jax.training.decoding import Decoder
from zigma_jax.training.evaluation import (
    ScheduledEvaluation,
    check_before,
    drawn,
    features_path,
    labels_as_in,
    labels_at,
    measure,
    reconstructed,
    reconstruction_floor,
    reference_features,
    seen_by,
)
from zigma_jax.training.logging import MetricLogger
from zigma_jax.training.prompts import Prompts, captions_of, open_text_encoder
from zigma_jax.training.sampling import choose_labels, make_sampler
from zigma_jax.training.sharding import make_mesh, replicated
from zigma_jax.training.weights import load_weights, load_workdir, params_of

METRICS = ["fd", "kd-full", "precision", "recall", "density", "coverage", "is"]
TOY = ToyNetwork()


def make_model():
    return random_model(tiny_config("unused").model)


def draws_of(model, config, mesh, count, labels=None):
    draw = make_sampler(nnx.graphdef(model), config.interpolant, config.sample, mesh, 0)
    params = jax.device_put(params_of(model), replicated(mesh))
    return drawn(
        draw, params, Decoder(model.cfg.sample_shape, mesh), model.cfg, count, labels_at(labels), {"model": "tiny"}
    )


def dataset_of(config):
    source = open_source(config.data)
    return source, of_dataset(config.data, source.info)


def never(size=(8, 8), count=100):
    """Pictures that nobody may look at."""
    return Pictures(count, size, {}, lambda _: pytest.fail("it went on to the pictures"))


def test_neither_batch_size_nor_devices_change_a_number(data_dir, tmp_path):
    config, model = tiny_config(data_dir), make_model()
    _, originals = dataset_of(config)
    tables = []
    for batch_size, devices in ((64, 1), (7, 1), (7, 8), (64, 8)):
        mesh = make_mesh(1, jax.devices()[:devices])
        pictures = draws_of(model, config, mesh, 20, choose_labels(model.cfg, np.arange(20)))
        path = tmp_path / f"{batch_size}-{devices}.npz"
        reference = reference_features(path, TOY, originals, batch_size, mesh)
        assert reference.count == 64
        tables.append(measure(TOY, pictures, reference, METRICS, batch_size, mesh))
        assert sum(len(batch) for batch in pictures.batches(batch_size)) == 20
    for table in tables[1:]:
        # Float32 rounding moves a sample across the border of two bytes now and then: 1 of 255 in one of 64 pixels.
        assert table == pytest.approx(tables[0], rel=1e-3, abs=1e-3)
    assert tables[0]["FD-toy"] > 0.1


def test_a_sample_that_is_not_finite_is_named():
    model = make_model()
    decoder = Decoder((8, 8, 3), make_mesh())

    def draw(params, indices, labels):
        samples = np.zeros((len(indices), 8, 8, 3), np.float32)
        samples[indices == 5, 3, 2, 1] = np.nan
        return samples

    with pytest.raises(FloatingPointError, match="sample 5 is not finite"):
        list(drawn(draw, {}, decoder, model.cfg, 8, labels_at(None), {}).batches(3))
    assert (
        len(list(drawn(draw, {}, decoder, model.cfg, 5, labels_at(None), {}).batches(3))) == 2
    )  # beyond what is asked for it may be


def test_networks_of_pictures_see_the_frames_of_clips_and_networks_of_videos_no_pictures():
    clips = np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3)
    of_clips = Pictures(2, (3, 4, 4), {}, lambda size: iter([clips]))
    network = ToyNetwork()
    frames = seen_by(network, of_clips)
    assert (frames.count, frames.size) == (6, (4, 4))
    np.testing.assert_array_equal(np.concatenate(list(frames.batches(64))), clips.reshape(6, 4, 4, 3))
    network.of_videos = True  # pyright: ignore[reportAttributeAccessIssue]
    assert seen_by(network, of_clips) is of_clips
    with pytest.raises(ConfigError, match="is a network of videos, and there are pictures"):
        seen_by(network, frames)


def test_labels_are_as_frequent_as_in_the_data_set(data_dir):
    config = tiny_config(data_dir)
    source, _ = dataset_of(config)
    there = np.array([source.label(source[i]) for i in range(64)])
    labels, words = labels_as_in(source, config.model, 64)
    np.testing.assert_array_equal(labels, there)
    np.testing.assert_array_equal(labels_as_in(source, config.model, 32)[0], there[::2])  # not the first: may be sorted
    np.testing.assert_array_equal(labels_as_in(source, config.model, 70)[0], [*there, *there[:6]])
    assert words == "as in the data set"
    fewer = dataclasses.replace(config.model, num_classes=3)
    np.testing.assert_array_equal(labels_as_in(source, fewer, 4)[0], [0, 1, 2, 0])
    unconditional = dataclasses.replace(config.model, num_classes=0, null_class=False)
    assert labels_as_in(source, unconditional, 4) == (None, "none")


def test_mistakes_are_found_before_pictures_are_looked_at():
    assert check_before(TOY, never(), never(), None) == ["fd", "sfd", *METRICS[1:]]  # too few for kd
    with pytest.raises(ValueError, match="metrics 'fid': unknown; known are fd"):
        check_before(TOY, never(), never(), ["fid"])
    with pytest.raises(ValueError, match="'kd': needs the features of at least 1000 samples, the set holds 100"):
        check_before(TOY, never(), never(), ["kd"])
    with pytest.raises(ValueError, match="'sfd': the set has no 'spatial'"):
        check_before(ToyNetwork(spatial=False), never(), never(), ["sfd"])
    with pytest.warns(FewSamplesWarning, match="the set has 6 samples for 6 feature dimensions.*take more than 6"):
        check_before(TOY, never(count=6), never(), ["fd"])
    with pytest.warns(UserWarning, match=r"\(4, 4\) pixels are compared with a reference of \(8, 8\)"):
        check_before(TOY, never((4, 4)), never(), ["fd"])


def test_a_features_file_is_used_again_and_refused_for_others(data_dir, tmp_path, monkeypatch):
    config = tiny_config(data_dir)
    source, originals = dataset_of(config)
    path = features_path(source, originals, TOY)
    assert path.parent.parent == next((data_dir / "avatars" / "tiny").iterdir())  # beside the records
    assert path.name == f"train-8x8-toy-{TOY.fingerprint[:12]}.npz"
    assert features_path(source, never((16, 8)), TOY).name.startswith("train-16x8-toy")

    path, mesh = tmp_path / "made" / "toy.npz", make_mesh()
    made = reference_features(path, TOY, originals, 64, mesh)
    unseen = dataclasses.replace(originals, batches=never().batches)
    again = reference_features(path, TOY, unseen, 64, mesh)
    np.testing.assert_array_equal(made.gaussians["pool"].covariance, again.gaussians["pool"].covariance)
    with pytest.raises(ValueError, match=r"network 'toy', .* 'other'"):
        reference_features(path, ToyNetwork(name="other"), unseen, 64, mesh)
    with pytest.raises(ValueError, match="other weights"):
        reference_features(path, ToyNetwork(seed=1), unseen, 64, mesh)
    with pytest.raises(ValueError, match=r"toy.npz is of .*'train'.* not of .*'test'.*give another path"):
        reference_features(path, TOY, dataclasses.replace(unseen, about={"split": "test"}), 64, mesh)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match=r"cannot be written to .*name another file"):
        reference_features(tmp_path / "new" / "toy.npz", TOY, unseen, 64, mesh)


@pytest.mark.parametrize(("lower", "best"), [(True, 4), (False, 2)])
def test_the_best_evaluation(tmp_path, lower, best):
    done = Evaluations(tmp_path, "FD", lower, 0)
    assert done.best is None
    for step, value in ((2, 3.0), (4, 1.0), (6, float("nan")), (8, 1.0), (10, 3.0)):
        done.add(step, {"FD": value, "other": -value})
    assert done.best == best_step(tmp_path) == best  # the earliest of equals; what is not finite never
    assert 6 in done
    assert json.loads((tmp_path / "evaluations.json").read_text())["evaluations"][2]["FD"] is None
    resumed = Evaluations(tmp_path, "FD", lower, 3)  # from a checkpoint before the others
    assert 2 in resumed
    assert 4 not in resumed
    assert resumed.best == 2
    (tmp_path / "evaluations.json").write_text("{")
    with pytest.raises(ValueError, match=r"evaluations.json is damaged .*remove it"):
        Evaluations(tmp_path, "FD", lower, 3)


EVALUATED = {"eval__every": 2, "eval__samples": 10, "eval__batch_size": 7, "eval__metrics": ("fd", "kd-full")}


def test_the_floor_that_an_autoencoder_sets(data_dir, tmp_path):
    """Its reconstructions are measured as samples are, once, and a picture that comes back has the PSNR of rounding."""
    _, originals = dataset_of(tiny_config(data_dir))
    mesh = make_mesh()
    decoder = Decoder((4, 4, 4), mesh, FakeAutoencoder.make())
    reference = reference_features(tmp_path / "reference.npz", TOY, originals, 64, mesh)
    some = dataclasses.replace(originals, count=20, batches=lambda size: iter([originals.first(20)]))
    path = tmp_path / "floor.json"
    values = reconstruction_floor(path, TOY, some, reference, ["fd", "recall"], decoder, 7, mesh)
    assert values.keys() == {"FD-toy", "recall-toy", "PSNR"}
    again = reconstructed(some, decoder).first(20)
    assert values["FD-toy"] == measure(TOY, reconstructed(some, decoder), reference, ["fd"], 7, mesh)["FD-toy"]
    error = np.square(originals.first(20).astype(float) - again).mean((1, 2, 3))
    assert values["PSNR"] == pytest.approx((10 * np.log10(255**2 / error)).mean(), rel=1e-4)

    unseen = dataclasses.replace(some, batches=never().batches)
    assert reconstruction_floor(path, TOY, unseen, reference, ["fd", "recall"], decoder, 7, mesh) == values
    other = dataclasses.replace(FakeAutoencoder.make(), fingerprint="0" * 64)
    for changed in (Decoder((4, 4, 4), mesh, other), decoder):
        with pytest.raises(pytest.fail.Exception):
            reconstruction_floor(path, TOY, unseen, reference, ["fd"], changed, 7, mesh)


def test_a_schedule_of_latents_shows_the_floor(data_dir, tmp_path, monkeypatch):
    """Samples are decoded, compared with pictures, and stand beside the autoencoder's own reconstructions."""
    monkeypatch.setattr(evaluation, "load_network", lambda *_: TOY)
    config = tiny_config(data_dir, **(EVALUATED | {"eval__metrics": ("kd-full",)}))
    decoder = Decoder((4, 4, 4), make_mesh(), FakeAutoencoder.make())
    _, originals = dataset_of(config)
    perfect = decoder.encode(to_float(originals.first(64)))
    schedule = ScheduledEvaluation(config, tmp_path, lambda _, numbers, __: perfect[numbers], decoder)
    schedule.resume(0)
    logger = MetricLogger(tmp_path, 6, 16, progress=False)
    schedule.run(2, {}, logger)
    logger.close()
    (line,) = metrics(tmp_path)
    assert line.keys() == {"step", "eval/KD-full-toy", "eval/reconstruction-KD-full-toy", "eval/reconstruction-PSNR"}
    assert line["eval/KD-full-toy"] == line["eval/reconstruction-KD-full-toy"]
    assert json.loads((tmp_path / "evaluations.json").read_text())["evaluations"] == [
        {"step": 2, "KD-full-toy": line["eval/KD-full-toy"]}
    ]


def test_a_schedule_of_text_draws_for_the_captions_it_is_compared_with(data_dir, tmp_path, monkeypatch):
    """One a picture, in the order of the split, and guided away from the empty one."""
    monkeypatch.setattr(evaluation, "load_network", lambda *_: TOY)
    encoder = open_text_encoder(TextConfig(str(write_bert(tmp_path / "bert"))), 8)
    changes = EVALUATED | {"eval__metrics": ("kd-full",), "eval__split": "test", "eval__samples": 12}
    changes |= {"model__num_classes": 0, "model__null_class": False, "train__label_dropout": 0.0}
    config = tiny_config(data_dir, **changes, model__context_size=8, text__encoder="bert", text__weights="DIR")
    source, seen = open_source(dataclasses.replace(config.data, split="test")), {}

    def draw(_, numbers, y):
        seen.update(zip(numbers.tolist(), np.asarray(y.tokens), strict=True))
        return np.zeros((len(numbers), 8, 8, 3), np.float32)

    schedule = ScheduledEvaluation(config, tmp_path, draw, Decoder((8, 8, 3), make_mesh()), encoder)
    schedule.resume(0)
    logger = MetricLogger(tmp_path, 6, 16, progress=False)
    schedule.run(2, {}, logger)
    logger.close()
    expected = Prompts(encoder, captions_of(source, 12))(np.arange(12))
    assert len(set(captions_of(source, 12))) == 12
    np.testing.assert_array_equal([seen[number] for number in range(12)], expected.tokens)


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_evaluations_while_training(data_dir, tmp_path, monkeypatch):
    """Logged, the best checkpoint kept; killed in the middle of one and resumed, all is as in one go."""
    monkeypatch.setattr(evaluation, "load_network", lambda *_: TOY)
    monkeypatch.setattr(evaluation, "LOWER_IS_BETTER", ())  # the first is the best: training brings the others closer
    config = tiny_config(data_dir, checkpoint__keep_last=1, **EVALUATED)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(config, whole)
    lines = [line for line in metrics(whole) if "eval/FD-toy" in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(line.keys() == {"step", "eval/FD-toy", "eval/KD-full-toy"} for line in lines)
    assert [line["step"] for line in metrics(whole) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    steps = {line["step"]: line["eval/FD-toy"] for line in lines}
    best = max(steps, key=lambda step: steps[step])
    kept = {int(path.name) for path in (whole / "checkpoints").iterdir()}
    assert kept == {best, 6}
    assert best < 6

    # The number is that of the checkpoint's averaged weights, whatever drew them.
    model, from_run, step = load_workdir(whole, "ema", "best")
    assert (step, from_run) == (best, config)
    assert load_workdir(whole)[2] == load_workdir(whole, checkpoint="6")[2] == 6
    with pytest.raises(ValueError, match="checkpoint = 'last': must be 'latest', 'best' or a step"):
        load_weights(whole, checkpoint="last")
    source, originals = dataset_of(config)
    mesh = make_mesh(1, jax.devices()[:1])
    pictures = draws_of(model, config, mesh, 10, labels_as_in(source, config.model, 10)[0])
    reference = reference_features(features_path(source, originals, TOY), TOY, originals, 64, mesh)
    assert measure(TOY, pictures, reference, ["fd"], 64, mesh)["FD-toy"] == pytest.approx(steps[best], rel=1e-3)

    real_measure = evaluation.measure

    def killed(*args):
        if "step 4" in args[-1]:
            raise KeyboardInterrupt
        return real_measure(*args)

    monkeypatch.setattr(evaluation, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, broken)
    monkeypatch.setattr(evaluation, "measure", real_measure)
    assert train(config, broken)
    assert (broken / "evaluations.json").read_text() == (whole / "evaluations.json").read_text()
    assert {int(path.name) for path in (broken / "checkpoints").iterdir()} == kept
    names = json.loads((whole / "checkpoints" / "6" / "leaves.json").read_text())["leaves"]
    for name in names:
        arrays = [read_array(workdir / "checkpoints" / "6" / "state", name) for workdir in (whole, broken)]
        np.testing.assert_array_equal(*arrays, err_msg=name)
    keep = ("step", "loss", "eval/FD-toy")
    assert [[line.get(k) for k in keep] for line in metrics(whole)] == [
        [line.get(k) for k in keep] for line in metrics(broken)
    ]


def test_samples_that_are_not_finite_do_not_stop_the_training(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "load_network", lambda *_: TOY)
    config = tiny_config(data_dir, **EVALUATED)
    decoder = Decoder((8, 8, 3), make_mesh())
    schedule = ScheduledEvaluation(config, tmp_path, lambda *_: np.full((7, 8, 8, 3), np.nan, np.float32), decoder)
    schedule.resume(0)
    assert [step for step in range(7) if schedule.due(step)] == [2, 4, 6]
    logger = MetricLogger(tmp_path, 6, 16, progress=False)
    assert schedule.run(2, {}, logger) is None
    logger.close()
    assert metrics(tmp_path) == [{"step": 2, "eval/FD-toy": None}]
    assert not schedule.due(2)
    with pytest.raises(ValueError, match="no best checkpoint is known"):
        best_step(tmp_path)


def test_a_schedule_that_cannot_work_is_refused_before_training(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(train_program, "make_train_step", lambda *_: None)
    monkeypatch.setattr(train_program, "Checkpointer", lambda *_: pytest.fail("it went on"))
    with pytest.raises(FileNotFoundError, match="network 'inception' needs a file of weights"):
        train(tiny_config(data_dir, eval__network="inception", **EVALUATED), tmp_path)
    with pytest.raises(ValueError, match="network 'vgg': there are effnet, inception"):
        train(tiny_config(data_dir, eval__network="vgg", **EVALUATED), tmp_path)
    monkeypatch.setattr(evaluation, "load_network", lambda *_: TOY)
    with pytest.raises(ValueError, match=r"'kd': needs .* 1000 samples"):
        train(tiny_config(data_dir, **(EVALUATED | {"eval__metrics": ("kd",)})), tmp_path)

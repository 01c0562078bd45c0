"""The training program: resume to the bit, stop on request, refuse what cannot work."""

import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests import programs
from tests.training.tiny import tiny_config, tiny_flags
from zigma_jax.train import Run, train
from zigma_jax.training.array_store import CheckpointError, read_array
from zigma_jax.training.weights import load_weights, params_of


def wait_for(path, process, output):
    while not path.exists():
        assert process.is_alive(), output.read_text()
        time.sleep(0.01)


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def leaves(workdir, step):
    """Every array of a checkpoint by its name, read past the code that wrote it."""
    path = workdir / "checkpoints" / str(step)
    names = json.loads((path / "leaves.json").read_text())["leaves"]
    return {name: read_array(path / "state", name) for name in names}


@pytest.mark.slow
def test_stopped_killed_and_resumed_is_the_same_run_to_the_bit(tmp_path, data_dir):
    """SIGTERM, kill -9, a damaged checkpoint, then to the end: arrays, losses and sample ids as in one go."""
    flags = tiny_flags(data_dir, train__steps=40, checkpoint__every=8)
    whole, broken, printed = tmp_path / "whole", tmp_path / "broken", tmp_path / "printed"
    devices = 2  # so that what is left on one device shows
    code, output = programs.run("zigma_jax.train", *flags, f"--workdir={whole}", devices=devices)
    assert code == 0, output
    assert f"--source={whole}" in output  # how to sample

    first = programs.start(printed, "zigma_jax.train", *flags, f"--workdir={broken}", devices=devices)
    wait_for(broken / "checkpoints" / "8", first, printed)
    first.terminate()  # by SIGTERM
    first.join()
    output = printed.read_text()
    assert first.exitcode == 143, output
    assert "the same command goes on from it" in output
    stopped_at = max(int(path.name) for path in (broken / "checkpoints").iterdir())
    assert metrics(broken)[-1]["step"] == stopped_at  # every step up to the signal's is saved and logged

    second = programs.start(printed, "zigma_jax.train", *flags, f"--workdir={broken}", devices=devices)
    wait_for(broken / "checkpoints" / str((stopped_at // 8 + 1) * 8), second, printed)
    second.kill()
    second.join()
    damaged = max(int(path.name) for path in (broken / "checkpoints").iterdir() if path.name.isdigit())
    assert stopped_at < damaged < 40
    data = next(p for p in (broken / "checkpoints" / str(damaged) / "state").rglob("*") if p.stat().st_size > 1000)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    code, output = programs.run("zigma_jax.train", *flags, f"--workdir={broken}", devices=devices)
    assert code == 0, output
    assert f"{damaged} is damaged" in output
    assert data.name in output

    expected, found = leaves(whole, 40), leaves(broken, 40)
    assert expected.keys() == found.keys()
    assert {name.split("/")[0] for name in found} >= {"params", "ema", "opt_state", "step"}
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    keep = ("step", "loss", "grad_norm", "lr", "batch_crc32")
    assert [{k: line[k] for k in keep} for line in metrics(whole)] == [
        {k: line[k] for k in keep} for line in metrics(broken)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["attention", "mamba2"])
def test_other_mixers_resume_to_the_bit(tmp_path, data_dir, mixer):
    """A transformer with MLPs, and a hybrid of Mamba-2 and attention."""
    mixers = {"model__mixer": mixer, "model__attention_every": 2 * (mixer == "mamba2"), "model__head_size": 8}
    options = mixers | {"model__mlp_ratio": 2.0, "train__steps": 4}
    assert train(tiny_config(data_dir, **options), tmp_path / "whole")
    assert train(tiny_config(data_dir, **options | {"train__steps": 2}), tmp_path / "broken")
    assert train(tiny_config(data_dir, **options), tmp_path / "broken")
    expected, found = leaves(tmp_path / "whole", 4), leaves(tmp_path / "broken", 4)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)


@pytest.mark.slow
def test_a_run_leaves_what_it_says_and_the_programs_use_it(tmp_path, data_dir):
    config = tiny_config(data_dir, log__preview_every=4)
    workdir = tmp_path / "run"
    assert train(config, workdir)
    assert [line["step"] for line in metrics(workdir)] == [1, 2, 3, 4, 5, 6]
    assert metrics(workdir)[-1].keys() >= {"loss", "grad_norm", "lr", "images_per_sec", "input_wait", "skipped"}
    previews = sorted(path.name for path in (workdir / "previews").iterdir())
    assert previews == ["0000004.png", "0000006.png", "latest.png"]  # and one at the end
    with Image.open(workdir / "previews" / "latest.png") as picture:
        assert picture.size == (22, 22)  # 2 × 2 samples of 8 px, gaps of 2
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 6
    assert list((workdir / "tensorboard").iterdir())

    ema, from_run = load_weights(workdir, "ema")
    raw, _ = load_weights(workdir, "raw")
    assert from_run == config
    difference = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params_of(ema), params_of(raw))
    assert max(jax.tree.leaves(difference)) > 0

    with pytest.raises(ValueError, match=r"another model \(model.hidden_size differ\)"):
        train(tiny_config(data_dir, model__hidden_size=32), workdir)

    code, output = programs.run("zigma_jax.sample", f"--source={workdir}", "--num=5", "--labels=3,7", "--batch=4")
    assert code == 0, output
    names = sorted(path.name for path in (workdir / "samples").iterdir())
    assert names == [*(f"00000{i}.png" for i in range(5)), "grid.png", "manifest.json", "samples.npz"]
    with np.load(workdir / "samples" / "samples.npz") as file:
        assert file["samples"].shape == (5, 8, 8, 3)
        assert file["labels"].tolist() == [3, 7, 3, 7, 3]
    code, output = programs.run("zigma_jax.sample", f"--source={workdir}", "--method=rk45")
    assert code == 1
    assert "rk45" in output.splitlines()[-1]

    code, output = programs.run("zigma_jax.convert", f"--source={workdir}", f"--target={tmp_path}/a.pt")
    assert code == 0, output
    flags = tiny_flags(data_dir)
    code, output = programs.run("zigma_jax.convert", f"--source={tmp_path}/a.pt", f"--target={tmp_path}/tuned", *flags)
    assert code == 0, output
    for weights in ("ema", "raw"):
        converted, _ = load_weights(tmp_path / "tuned", weights)
        jax.tree.map(np.testing.assert_array_equal, params_of(converted), params_of(ema))


def test_a_run_that_diverges_stops_and_keeps_a_finite_checkpoint(tmp_path, data_dir, monkeypatch):
    to_devices = Run._to_devices

    def broken(run, batch):
        return to_devices(run, {**batch, "image": batch["image"] * (np.nan if run.step >= 3 else 1)})

    monkeypatch.setattr(Run, "_to_devices", broken)
    config = tiny_config(data_dir, train__max_skipped=3, train__steps=50)
    with pytest.raises(FloatingPointError, match=r"not finite in the last 3 steps.*config.train.max_skipped = 3"):
        train(config, tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        assert all(np.all(np.isfinite(value)) for value in leaves(tmp_path, int(path.name)).values())


def test_a_step_that_is_not_finite_at_a_checkpoint_saves_what_was_before(tmp_path, data_dir, monkeypatch):
    to_devices = Run._to_devices

    def broken(run, batch):
        image = batch["image"] * np.nan if run.step == 1 else batch["image"]
        return to_devices(run, {**batch, "image": image})

    monkeypatch.setattr(Run, "_to_devices", broken)
    assert train(tiny_config(data_dir, train__steps=3, checkpoint__every=1), tmp_path)
    assert [line["skipped"] for line in metrics(tmp_path)] == [0, 1, 1]
    assert metrics(tmp_path)[1]["loss"] is None
    one, two = leaves(tmp_path, 1), leaves(tmp_path, 2)
    for name, value in two.items():
        assert np.all(np.isfinite(value)), name
        if name.startswith(("params", "ema", "opt_state")):
            np.testing.assert_array_equal(value, one[name], err_msg=name)


@pytest.mark.slow  # 20 s
def test_first_losses_of_the_quickstart_model(tmp_path, data_dir):
    """A golden: any change of data, initialisation, noise, model, objective or optimiser shows here."""
    import importlib

    from zigma_jax.training.parse_config import from_dict

    config = importlib.import_module("configs.quickstart").get_config()
    config.data.name, config.data.data_dir = "avatars/tiny", str(data_dir)
    config.train.batch_size, config.train.accumulate, config.train.steps = 16, 2, 3
    config.model.hidden_size, config.optimizer.warmup_steps = 32, 1  # narrow; the optimiser shows
    config.log.every = 1
    assert train(from_dict(config), tmp_path)
    losses = [line["loss"] for line in metrics(tmp_path)]
    np.testing.assert_allclose(losses, QUICKSTART_LOSSES, rtol=2e-4)  # float32 sums in other orders


QUICKSTART_LOSSES = [1.752652, 1.668872, 1.515208]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__batch_size": 30}, r"config.train.batch_size = 30: must be divisible by the number of devices, 8"),
        ({"train__fsdp": 3}, r"config.train.fsdp = 3: must divide the number of devices, 8"),
        ({"model__num_classes": 3}, r"model.num_classes=3: .*20 classes.*out of range"),
        ({"data__name": "folder", "data__folder": "/nowhere"}, r"/nowhere"),
        ({"data__name": "no_such_set"}, r"data.name='no_such_set'"),
        ({"data__split": "validation"}, r"data.split='validation'"),
    ],
)
def test_refused_before_anything_is_compiled(tmp_path, data_dir, changes, message, monkeypatch):
    monkeypatch.setattr("zigma_jax.train.make_state", lambda *_: pytest.fail("it went on to the model"))
    with pytest.raises(ValueError, match=message):
        train(tiny_config(data_dir, **changes), tmp_path / "run")
    assert not list(tmp_path.rglob("checkpoints"))


def test_programs_answer_mistakes_in_one_line(tmp_path, data_dir):
    code, output = programs.run("zigma_jax.train", "--config=configs/quickstart.py", "--config.trian.steps=2")
    assert code == 1
    assert "error: config.trian: no such field; did you mean train?" in output
    assert "Traceback" not in output


def test_all_checkpoints_damaged_is_a_refusal(tmp_path, data_dir):
    config = tiny_config(data_dir, train__steps=2)
    assert train(config, tmp_path)
    for sums in Path(tmp_path).rglob("extra.json"):
        sums.write_text(sums.read_text().replace("avatars", "avatarz"))
    with pytest.raises(CheckpointError, match="no sound checkpoint"):
        train(tiny_config(data_dir, train__steps=4), tmp_path)

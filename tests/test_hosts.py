"""A run on two processes of two devices each: what one process would do, to the picture; and its end."""

import json
import signal
import time

import numpy as np
import pytest
from PIL import Image

from tests import programs
from tests.hosts import ended, run_all, start_all
from tests.training.test_train import leaves, metrics
from tests.training.tiny import tiny_flags
from zigma_jax.data.sources import prepare

pytestmark = pytest.mark.slow
KEEP = ("step", "loss", "grad_norm", "lr", "batch_crc32")
EVAL = {
    "eval__every": 4,
    "eval__samples": 24,
    "eval__batch_size": 8,
    "eval__metrics": "('fd',)",
    "data__image_size": 16,
}


def pictures(directory):
    with np.load(directory / "samples.npz") as file:
        return file["samples"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    prepare("avatars/tiny", str(directory))
    return directory


@pytest.fixture(scope="module")
def one(tmp_path_factory, data_dir):
    """A run on one process of four devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    flags = tiny_flags(data_dir, **EVAL, log__every=2, checkpoint__every=4)
    code, output = programs.run("zigma_jax.train", *flags, f"--workdir={workdir}", devices=4)
    assert code == 0, output
    return workdir


def test_train_sample_and_evaluate_on_two_processes(tmp_path, tmp_path_factory, data_dir, one):
    """With evaluations, on a data set that neither has prepared, with other hash seeds: like one process."""
    fresh = tmp_path_factory.mktemp("fresh")
    flags = tiny_flags(fresh, **EVAL, log__every=2, checkpoint__every=4)
    two = tmp_path / "run"
    codes, printed = run_all(tmp_path / "a", "zigma_jax.train", *flags, f"--workdir={two}")
    assert codes == [0, 0], "\n".join(printed)
    expected, found = leaves(one, 6), leaves(two, 6)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5, err_msg=name)  # sums in another order
    for a, b in zip(metrics(one), metrics(two), strict=True):
        for name in KEEP if "loss" in a else ("eval/FD-effnet",):
            np.testing.assert_allclose(b[name], a[name], rtol=1e-3, err_msg=name)
    assert [a.get("batch_crc32") for a in metrics(one)] == [b.get("batch_crc32") for b in metrics(two)]

    # The same samples of the same weights, to the bit, and the same evaluation.
    draw = ("--num=10", "--batch=8", "--method=euler", "--steps=3")
    code, output = programs.run("zigma_jax.sample", f"--source={one}", f"--output={tmp_path}/s1", *draw, devices=4)
    assert code == 0, output
    codes, printed = run_all(tmp_path / "b", "zigma_jax.sample", f"--source={one}", f"--output={tmp_path}/s2", *draw)
    assert codes == [0, 0], "\n".join(printed)
    np.testing.assert_array_equal(pictures(tmp_path / "s2"), pictures(tmp_path / "s1"))
    for number in range(10):
        with Image.open(tmp_path / "s2" / f"{number:06d}.png") as picture:
            np.testing.assert_array_equal(picture, pictures(tmp_path / "s1")[number])
    assess = (f"--source={one}", "--num=24", "--batch=8", "--metrics=fd", *draw[2:])
    code, output = programs.run("zigma_jax.evaluate", f"--output={tmp_path}/e1", *assess, devices=4)
    assert code == 0, output
    codes, printed = run_all(tmp_path / "c", "zigma_jax.evaluate", f"--output={tmp_path}/e2", *assess)
    assert codes == [0, 0], "\n".join(printed)
    numbers = [json.loads((tmp_path / e / "evaluation.json").read_text())["samples"]["metrics"] for e in ("e1", "e2")]
    np.testing.assert_allclose([*numbers[0].values()], [*numbers[1].values()], rtol=1e-4)

    # Two processes, one, two again: the run goes on.
    longer = tiny_flags(fresh, **EVAL, log__every=2, checkpoint__every=4, train__steps=8, train__accumulate=2)
    code, output = programs.run("zigma_jax.train", *longer, f"--workdir={two}", devices=8)
    assert code == 0, output
    longer = tiny_flags(fresh, **EVAL, log__every=2, checkpoint__every=4, train__steps=10)
    codes, printed = run_all(tmp_path / "d", "zigma_jax.train", *longer, f"--workdir={two}")
    assert codes == [0, 0], "\n".join(printed)
    assert [line["step"] for line in metrics(two) if "loss" in line] == [2, 4, 6, 8, 10]


def test_one_process_that_is_killed_ends_all_and_leaves_a_sound_checkpoint(tmp_path, data_dir):
    flags = tiny_flags(data_dir, train__steps=100_000, checkpoint__every=4, log__every=100)
    started, outputs = start_all(tmp_path / "a", "zigma_jax.train", *flags, f"--workdir={tmp_path}/run")
    programs.wait_until(lambda: (tmp_path / "run" / "checkpoints" / "8").exists(), seconds=200)
    started[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    codes = ended(started, 100)
    assert codes[0] not in (0, None), outputs[0].read_text()
    assert time.monotonic() - began < 60
    steps = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit())
    flags = tiny_flags(data_dir, train__steps=steps[-1] + 2, checkpoint__every=4, train__accumulate=2)
    code, output = programs.run("zigma_jax.train", *flags, f"--workdir={tmp_path}/run", devices=8)  # 4 devices, then 8
    assert code == 0, output
    assert "damaged" not in output

"""Metrics: each step once, whatever was killed; nothing waits for the device."""

import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from zigma_jax.models.parameter_table import parameter_table
from zigma_jax.training.logging import MetricLogger


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def logger(workdir, **options):
    return MetricLogger(workdir, **{"total_steps": 40, "images_per_step": 8, "every": 5, "progress": False} | options)


def run(log, first, last):
    for step in range(first, last + 1):
        log.log(step, {"loss": jnp.float32(1 / step), "lr": 0.1})


def test_log_points_hold_the_exact_values(tmp_path):
    log = logger(tmp_path, total_steps=12)
    run(log, 1, 12)
    log.close()
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [5, 10, 12]
    assert [np.float32(line["loss"]) for line in found] == [np.float32(1 / step) for step in (5, 10, 12)]
    assert all(line["lr"] == 0.1 and line["images_per_sec"] > 0 for line in found)


def test_killed_and_resumed_is_the_same_as_in_one_go(tmp_path):
    whole = logger(tmp_path / "whole")
    run(whole, 1, 40)
    whole.close()
    killed = logger(tmp_path / "parts")
    run(killed, 1, 20)
    killed.flush()  # a checkpoint is saved at 20
    run(killed, 21, 33)  # and here the run is killed, while writing a line
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"step": 35, "lo')
    resumed = logger(tmp_path / "parts", start_step=20)
    assert [line["step"] for line in lines(tmp_path / "parts")] == [5, 10, 15, 20]
    run(resumed, 21, 40)
    resumed.close()
    pairs = [[(line["step"], line["loss"]) for line in lines(tmp_path / name)] for name in ("whole", "parts")]
    assert pairs[0] == pairs[1]
    killed.close()


def test_a_point_is_read_only_when_the_next_step_is_under_way(tmp_path):
    class Scalar:
        """Stands for a value of a step that still runs: reading it is what blocks."""

        read = False

        def __array__(self, dtype=None, copy=None):
            Scalar.read = True
            return np.zeros((), dtype)

    log = logger(tmp_path, every=1)
    log.log(1, {"loss": Scalar()})
    assert not Scalar.read
    log.log(2, {"loss": 0.0})
    assert Scalar.read
    log.close()


def test_the_log_makes_no_implicit_transfers(tmp_path):
    value = jax.jit(jnp.sin)(1.0)
    log = logger(tmp_path, every=1)
    with jax.transfer_guard("disallow"):
        log.log(1, {"loss": value})
        log.log(2, {"loss": value})
    log.close()
    assert len(lines(tmp_path)) == 2


def test_not_finite_is_null_so_that_the_file_stays_json(tmp_path):
    log = logger(tmp_path)
    log.write(7, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.5})
    log.close()
    assert lines(tmp_path) == [{"step": 7, "loss": None, "grad_norm": None, "lr": 0.5}]


def read_events(data):
    """TFRecord framing: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    while data:
        size = int.from_bytes(data[:8], "little")
        yield event_pb2.Event.FromString(data[12 : 12 + size])  # pyright: ignore[reportAttributeAccessIssue]
        data = data[16 + size :]


def test_tensorboard_holds_scalars_and_pictures(tmp_path):
    log = logger(tmp_path)
    run(log, 1, 5)
    log.image(5, "samples", np.zeros((6, 6, 3), np.uint8))
    log.close()
    events = [event for file in (tmp_path / "tensorboard").iterdir() for event in read_events(file.read_bytes())]
    values = {value.tag: (event.step, value) for event in events for value in event.summary.value}
    assert values["loss"][0] == 5
    assert values["loss"][1].simple_value == pytest.approx(0.2)
    assert values["samples"][1].image.width == 6


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    log = logger(tmp_path)
    run(log, 1, 10)
    log.image(5, "samples", np.zeros((6, 6, 3), np.uint8))
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_progress_bar_shows_loss_speed_and_time_left(tmp_path, capsys):
    log = logger(tmp_path, total_steps=10, progress=True)
    run(log, 1, 10)
    log.close()
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "loss=0.1000" in shown
    assert "img/s=" in shown


def test_wandb_resumes_the_same_run(tmp_path, monkeypatch):
    started, logged = [], []
    run_object = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **keywords: started.append(keywords) or run_object)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for start in (0, 5):
        log = logger(tmp_path, wandb={"project": "faces"}, config={"seed": 1}, start_step=start)
        run(log, start + 1, start + 5)
        log.close()
    assert [step for step, _ in logged] == [5, 10]
    assert started[0]["project"] == "faces"
    assert started[0]["config"] == {"seed": 1}
    assert started[0]["id"] == started[1]["id"]


def test_missing_wandb_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"zigma_jax\[wandb\]"):
        logger(tmp_path, wandb={})


def test_every_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="every=0"):
        logger(tmp_path, every=0)


def test_parameter_table():
    layer = {
        "kernel": jax.ShapeDtypeStruct((4, 8), jnp.float32),
        "bias": jax.ShapeDtypeStruct((8,), jnp.bfloat16),
    }
    params = {
        "blocks": [layer, layer, layer],
        "out": {"kernel": jnp.zeros((8, 2))},
        "stacked": jnp.zeros((3, 2, 2)),
    }
    rows = [line.split() for line in parameter_table(params).splitlines()]
    assert rows[0] == ["parameter", "shape", "dtype", "count", "share"]
    assert ["blocks/{0-2}/kernel", "3", "x", "(4,", "8)", "float32", "96", "64.9%"] in rows
    assert ["out/kernel", "(8,", "2)", "float32", "16", "10.8%"] in rows
    assert ["stacked", "(3,", "2,", "2)", "float32", "12", "8.1%"] in rows
    assert len(rows) == 1 + 1 + 4 + 1 + 1
    total, size = 3 * (32 + 8) + 16 + 12, (3 * 32 + 28) * 4 + 24 * 2
    assert parameter_table(params).endswith(f"total: {total} parameters, {size / 1e6:.1f} MB")

"""What a run can do without may fail: a warning, a count, and an error after several in a row."""

import numpy as np
import pytest

from tests.training.tiny import tiny_config
from zigma_jax import train as train_program
from zigma_jax.train import train
from zigma_jax.training.logging import MetricLogger
from zigma_jax.training.metrics_file import MetricsFile
from zigma_jax.training.stops import Interrupted
from zigma_jax.training.tolerance import Tolerance


def fail(tolerate, kind, times):
    for _ in range(times):
        with tolerate(kind, f"the {kind}"):
            raise OSError(28, "No space left on device", "/x/latest.png")


def test_failures_are_counted_by_kind_and_forgotten_after_a_success(caplog):
    tolerate = Tolerance()
    fail(tolerate, "preview", 2)
    fail(tolerate, "evaluation", 2)
    with tolerate("preview"):
        pass
    fail(tolerate, "preview", 2)
    assert "the preview failed, and training goes on (2 of 3 in a row): OSError: [Errno 28] No space" in caplog.text
    assert tolerate.failures == 6
    with pytest.raises(RuntimeError, match=r"the preview failed, as the 2 before it: .*latest.png"):
        fail(tolerate, "preview", 1)
    for error in (KeyboardInterrupt, Interrupted):
        with pytest.raises(error), tolerate("evaluation"):
            raise error


def test_previews_that_fail_do_not_end_the_run(tmp_path, data_dir, monkeypatch, caplog):
    def full(path, grid):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(train_program, "save_png", full)
    config = tiny_config(data_dir, log__preview_every=1, log__preview_count=1, train__steps=2)
    assert train(config, tmp_path)
    assert "preview of step 2 failed, and training goes on (2 of 3 in a row)" in caplog.text


def test_wandb_may_fail_at_any_time(tmp_path, monkeypatch, caplog):
    import sys
    import types

    def broken(*_, **__):
        raise ConnectionError("no network")

    run = types.SimpleNamespace(log=broken, finish=broken)
    for init in (broken, lambda **_: run):
        monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Image=lambda grid: grid))
        log = MetricLogger(tmp_path, 5, 8, every=1, progress=False, wandb={"project": "faces"})
        log.log(1, {"loss": np.float32(1)})
        log.image(1, "samples", np.zeros((6, 6, 3), np.uint8))
        log.close()
    assert caplog.text.count("ConnectionError: no network") == 4


def test_metrics_after_the_checkpoint_are_kept_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    content = [b'{"step": 1}\n', b"garbage\n", b'{"step": 2}\n', b'{"step": 3}\n', b'{"step": 4, "lo']
    path.write_bytes(b"".join(content))
    inode = path.stat().st_ino
    MetricsFile(path, 2).close()
    assert path.read_bytes() == b"".join(content[:3])
    assert path.stat().st_ino == inode  # cut, not written anew
    cut = tmp_path / "metrics.cut.jsonl"
    assert cut.read_bytes() == b"".join(content[3:]) + b"\n"
    MetricsFile(path, 1).close()
    assert cut.read_bytes() == b"".join(content[3:]) + b'\n{"step": 2}\n'
    assert path.read_bytes() == b"".join(content[:2])

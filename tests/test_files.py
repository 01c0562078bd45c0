"""Files are there whole or not at all: also on a full disk, whatever kind of file it is."""

import contextlib
import json
import os
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from zigma_jax.files import open_atomically, sweep, write_atomically
from zigma_jax.training.array_store import CheckpointError, save_params
from zigma_jax.training.best import Evaluations
from zigma_jax.training.checkpoint import Checkpointer
from zigma_jax.training.logging import MetricLogger
from zigma_jax.training.metrics_file import MetricsFile
from zigma_jax.training.preview import save_png
from zigma_jax.training.tensorboard import TensorBoard


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root's rights")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk):
    """Takes all the room there is."""
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return disk / "filler"


def tree(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


NOISE = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
WRITERS = {
    "any file": lambda disk, size: write_atomically(disk / "config.json", b"x" * size),
    "a picture": lambda disk, size: save_png(disk / "latest.png", NOISE[: max(2, size // 400)]),
    "evaluations": lambda disk, size: Evaluations(disk, "FD", True, 0).add(1, {f"m{i}": 1.0 for i in range(size)}),
    "weights": lambda disk, size: save_params(disk / f"params{size}", {"w": jnp.arange(float(size))}),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_named_and_what_was_there_stays(small_disk, kind):
    write = WRITERS[kind]
    write(small_disk, 10)
    filler = fill(small_disk)
    before = tree(small_disk)
    with pytest.raises(
        (OSError, CheckpointError), match=rf"(?s)No space left on device.*{small_disk}|{small_disk}.*No space"
    ):
        write(small_disk, 50_000)
    assert tree(small_disk) == before
    filler.unlink()
    write(small_disk, 50_000)  # room has been made


def test_a_checkpoint_on_a_full_disk(small_disk):
    with Checkpointer(small_disk / "checkpoints") as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(10)})
        checkpoints.wait()
        filler = fill(small_disk)
        before = tree(small_disk)
        with pytest.raises(CheckpointError, match=f"could not save step 2 under {small_disk}/checkpoints: .*No space"):
            checkpoints.save(2, {"w": jnp.ones(1000)})
        assert tree(small_disk) == before
        filler.unlink()
        checkpoints.save(2, {"w": jnp.ones(1000)})
    assert checkpoints.steps() == [1, 2]


def test_metrics_wait_for_room_and_no_line_is_lost_or_torn(small_disk):
    path = small_disk / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    filler, written = fill(small_disk), 0
    with contextlib.suppress(OSError):
        while True:
            metrics.append(json.dumps({"step": written, "text": "x" * 1000}))
            written += 1
    with pytest.raises(OSError, match=f"No space left on device.*{path}"):
        metrics.append(json.dumps({"step": written + 1}))
    assert all(json.loads(line) for line in path.read_text().splitlines())
    filler.unlink()
    metrics.append(json.dumps({"step": written + 2}))
    metrics.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(written + 3))


def test_tensorboard_says_so_and_goes_on_in_another_file(small_disk):
    board = TensorBoard(small_disk / "tensorboard", 1)
    board.scalars(1, {"loss": 1.0})
    filler = fill(small_disk)
    with pytest.raises(OSError, match=f"No space left on device.*{small_disk}/tensorboard"):
        board.image(2, "samples", NOISE)
    filler.unlink()
    board.image(3, "samples", NOISE)
    board.close()
    assert len(list((small_disk / "tensorboard").iterdir())) == 2


def test_a_log_on_a_full_disk_warns_counts_and_in_the_end_fails(small_disk, caplog):
    log = MetricLogger(small_disk, 100, 8, every=1, progress=False)
    fill(small_disk)

    def write():
        for step in range(1, 1000):
            log.write(step, {"text" * 300: float(step)})

    with pytest.raises(RuntimeError, match=rf"writing to metrics.jsonl failed, as the 9 before it: .*{small_disk}"):
        write()
    assert (
        "writing to metrics.jsonl failed, and training goes on (1 of 10 in a row): OSError: [Errno 28]" in caplog.text
    )
    assert log.tolerate.failures >= 10
    log.close()


def test_a_block_that_raises_leaves_nothing(tmp_path):
    write_atomically(tmp_path / "a.txt", b"old")
    with contextlib.suppress(KeyError), open_atomically(tmp_path / "a.txt") as file:
        file.write(b"new")
        raise KeyError
    assert tree(tmp_path) == {tmp_path / "a.txt": b"old"}
    assert os.stat(tmp_path / "a.txt").st_mode & 0o777 == 0o666 & ~_umask()


def test_sweeping_takes_partial_files_alone(tmp_path):
    for name in (".a.txt.01234567.partial", "b.partial", ".hidden"):
        (tmp_path / name).write_text("x")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "b.partial"]


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask

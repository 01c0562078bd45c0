"""Runs whose place is a bucket: nothing there is renamed, appended to or locked, and all is as in a directory."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fsspec.config import conf

from tests import bucket
from tests.hosts import run_all
from tests.random_model import random_model
from tests.test_sample import TINY
from tests.training.states import abstract, assert_same, make_state
from tests.training.test_logging import read_events
from tests.training.test_train import leaves, metrics
from tests.training.tiny import tiny_config, tiny_flags
from zigma_jax.data.sources import prepare
from zigma_jax.errors import ConfigError, DataError, MissingPackageError
from zigma_jax.files import as_path, open_atomically, write_atomically
from zigma_jax.train import train
from zigma_jax.training import workdir as workdir_module
from zigma_jax.training.array_store import CheckpointError
from zigma_jax.training.checkpoint import Checkpointer
from zigma_jax.training.logging import MetricLogger
from zigma_jax.training.sample_directory import SampleDirectory, pictures_of
from zigma_jax.training.trace import Trace
from zigma_jax.training.weights import load_weights, params_of, save_weights
from zigma_jax.training.workdir import owned

pytestmark = [
    pytest.mark.skipif(find_spec("gcsfs") is None, reason="buckets are read by gcsfs"),
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),  # how gcsfs uploads
]
PICTURES = np.random.default_rng(0).integers(0, 256, (6, 8, 6, 3), np.uint8)


@pytest.fixture(scope="module")
def served():
    with bucket.serving() as (store, environment):
        before = dict(os.environ)
        os.environ |= environment
        conf.setdefault("gs", {})["token"] = "anon"  # as the environment says to other processes
        yield store
        os.environ.clear()
        os.environ |= before


@pytest.fixture
def store(served, monkeypatch):
    """The bucket, empty."""
    monkeypatch.setattr(workdir_module, "_BEAT_IN_BUCKET", 0.1)
    served.objects.clear()
    return served


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    prepare("avatars/tiny", str(directory))
    return directory


def place():
    return as_path("gs://bucket/runs/a")


def test_an_object_is_replaced_as_a_whole(store):
    path = place() / "config.json"
    write_atomically(path, b"old")
    with contextlib.suppress(KeyError), open_atomically(path) as file:
        file.write(b"new")
        raise KeyError
    assert store.objects["runs/a/config.json"][0] == b"old"
    write_atomically(path, b"x" * 12_000_000)
    assert len(path.read_bytes()) == 12_000_000


def test_what_cannot_be_is_said_in_a_line(store, monkeypatch):
    for address in ("s3://bucket/a", "gs:/bucket/a", "hf://owner/a"):
        with pytest.raises(ConfigError, match=f"{address}: must be a directory, or an address gs://BUCKET/PATH"):
            as_path(address)
    with monkeypatch.context() as patch:
        patch.setattr("etils.epath.Path.exists", lambda _: (_ for _ in ()).throw(ImportError("gcsfs")))
        patch.setattr("etils.epath.gpath.PosixGPath.exists", lambda _: (_ for _ in ()).throw(ImportError("gcsfs")))
        with pytest.raises(MissingPackageError, match=r"gcsfs, which is not installed: pip install 'zigma_jax\[gcs\]'"):
            as_path("gs://bucket/a")
    monkeypatch.setattr("etils.epath.gpath.PosixGPath.exists", lambda _: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.raises(ConfigError, match=r"gs://bucket/a: cannot be read \(PermissionError: no\)"):
        as_path("gs://bucket/a")


def test_checkpoints(store):
    """Half written ones are none, and are removed by the run that goes on; damage is found."""
    with Checkpointer(place(), keep_last=2) as ckpt:
        for step in (10, 20, 30):
            ckpt.save(step, make_state(step), {"data": b"\x00"})
        ckpt.wait()
        assert ckpt.steps() == [20, 30]
        assert not [name for name in store.objects if name.startswith("runs/a/10/")]
        half = {name.replace("/30/", "/40/"): data for name, data in store.objects.items() if "/30/" in name}
        store.objects.update({name: data for name, data in half.items() if not name.endswith("SHA256SUMS")})
        state, extra, step = ckpt.restore(abstract(make_state()))
        assert (step, extra) == (30, {"data": b"\x00"})
        assert_same(state, make_state(30))
        name = next(name for name in store.objects if "/30/state/ocdbt.process_0/d/" in name)
        data, generation = store.objects[name]
        store.objects[name] = data[:100] + bytes([data[100] ^ 1]) + data[101:], generation
        state, _, step = ckpt.restore(abstract(make_state()))
        assert step == 20
        with pytest.raises(
            CheckpointError,
            match=r"no sound checkpoint under gs://bucket/runs/a:\n  30: file state/.* does not match its checksum",
        ):
            ckpt.restore(abstract(make_state()), step=30)
        ckpt.restore(abstract(make_state()))
        ckpt.save(30, make_state(30))
        ckpt.wait()
        assert ckpt.steps() == [20, 30]
    assert {name.split("/")[2] for name in store.objects} == {"20", "30", "30.damaged"}


def test_a_second_run_is_refused_and_a_killed_one_keeps_nobody_out(store):
    with owned(place()):
        time.sleep(0.3)
        with (
            pytest.raises(ConfigError, match=f"gs://bucket/runs/a is in use by process {os.getpid()} on"),
            owned(place()),
        ):
            pass
    assert not store.objects
    write_atomically(place() / ".lock", b'{"host": "elsewhere", "process": 7, "since": "noon"}')
    with owned(place()):
        assert json.loads((place() / ".lock").read_bytes())["process"] == os.getpid()


def test_of_two_that_come_at_once_one_stays(store):
    found, together = [], threading.Barrier(2)

    def come():
        together.wait()
        try:
            with owned(place()):
                found.append("in")
                time.sleep(1)
        except ConfigError:
            found.append("refused")

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["in", "refused"]


def test_logs_are_put_as_a_whole_and_gone_on_with(store, monkeypatch):
    monkeypatch.setattr("zigma_jax.training.tensorboard._LARGEST", 10_000)

    def log(first, last):
        logger = MetricLogger(place(), 40, 8, first - 1, every=1, progress=False)
        for step in range(first, last + 1):
            logger.write(step, {"loss": 1 / step})
            logger.image(step, "samples", np.random.default_rng(step).integers(0, 255, (40, 40, 3), np.uint8))
        logger.sync()
        return logger

    killed = log(1, 6)  # in a step after the one that was saved last, 4
    log(5, 8).close()
    lines = [json.loads(line)["step"] for line in (place() / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (place() / "metrics.cut.jsonl").read_text().count("\n") == 2
    files = [data for name, (data, _) in sorted(store.objects.items()) if "/tensorboard/" in name]
    assert len(files) >= 4  # of 16 MiB each, in earnest
    steps = [event.step for data in files for event in read_events(data) for value in event.summary.value]
    assert {*steps} == {*range(1, 9)}
    killed.close()


def test_samples_pictures_and_arrays(store):
    path, arrays = place() / "samples", {"latents": ((2,), np.float32), "noise": ((3,), np.float32)}
    latents, noise = np.arange(12, dtype=np.float32).reshape(6, 2), np.ones((6, 3), np.float32)

    def work(start, end, **options):
        with SampleDirectory(path, 6, {"seed": 0}, {}, (8, 6, 3), arrays, ("latents",), **options) as directory:
            assert directory.count == start
            directory.add(PICTURES[start:end], latents=latents[start:end], noise=noise[start:end])
            if end == 6:
                directory.finish(np.arange(6, dtype=np.int32))

    work(0, 2)
    store.objects["runs/a/samples/noise.parts/000000002-000000004"] = b"of a killed program", 1
    work(2, 4)
    work(4, 6)
    assert {name.removeprefix("runs/a/samples/") for name in store.objects} == {
        *(f"00000{i}.png" for i in range(6)),
        *("grid.png", "manifest.json", "samples.npz", "latents.npy", "noise.npz"),
    }
    with (path / "latents.npy").open("rb") as file:
        np.testing.assert_array_equal(np.load(file, allow_pickle=False), latents)
    np.testing.assert_array_equal(np.concatenate(list(pictures_of(path).batches(4))), PICTURES)
    with pytest.raises(ConfigError, match=r"--output=gs://bucket/runs/a: holds samples, and no manifest.json"):
        SampleDirectory(place(), 6, {}, {}, (8, 6, 3))
    del store.objects["runs/a/samples/latents.npy"]
    work(0, 2, overwrite=True)
    name = "runs/a/samples/latents.parts/000000000-000000002"
    del store.objects[name]
    with pytest.raises(DataError, match=r"latents.parts: does not hold the 2 rows"):
        work(2, 4)


@pytest.mark.parametrize("name", ["model.pt", "model"])
def test_weights(store, name):
    model = random_model(TINY, scale=0.1)
    save_weights(model, place() / name)
    loaded, _ = load_weights(place() / name)
    assert_same(params_of(loaded), params_of(model))
    with pytest.raises(ConfigError, match=f"gs://bucket/runs/a/{name} exists"):
        save_weights(model, place() / name)


def test_a_trace(store):
    trace = Trace(place() / "tensorboard", (1, 2))
    for step in (1, 2):
        trace.before(step)
        trace.after(step, jax.jit(jnp.sin)(1.0))
    found = [name for name in store.objects if name.startswith("runs/a/tensorboard/plugins/profile/")]
    assert any(name.endswith(".xplane.pb") for name in found)


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_run_of_a_directory_to_the_bit(store, tmp_path, data_dir):
    fields = {"log__preview_every": 2, "checkpoint__keep_last": 1}
    assert train(tiny_config(data_dir, train__steps=2, **fields), place())
    assert train(tiny_config(data_dir, train__steps=6, **fields), place())
    assert train(tiny_config(data_dir, train__steps=6, **fields), tmp_path)
    expected, found = leaves(tmp_path, 6), leaves(place(), 6)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    keep = ("step", "loss", "batch_crc32")
    assert [{k: line[k] for k in keep} for line in metrics(place())] == [
        {k: line[k] for k in keep} for line in metrics(tmp_path)
    ]
    assert (place() / "previews" / "latest.png").read_bytes() == (tmp_path / "previews" / "latest.png").read_bytes()
    assert not (place() / ".lock").exists()


def program(*arguments):
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_programs(store, tmp_path, data_dir):
    """Two processes train there, one goes on; sample, evaluate, convert and prepare read it and write there."""
    run = "gs://bucket/runs/b"
    flags = tiny_flags(data_dir, log__preview_every=6, checkpoint__every=4)
    environment = {name: os.environ.pop(name) for name in ("JAX_COMPILATION_CACHE_DIR",) if name in os.environ}
    try:
        codes, printed = run_all(tmp_path, "zigma_jax.train", *flags, f"--workdir={run}")
        assert codes == [0, 0], "\n".join(printed)
        assert [name for name in store.objects if name.startswith("runs/b/compiled/")]
    finally:
        os.environ |= environment
    longer = ("--config.train.steps=8", "--config.train.accumulate=2")
    program("zigma_jax.train", *flags, *longer, f"--workdir={run}")
    assert [line["step"] for line in metrics(as_path(run))] == [*range(1, 9)]
    draw = ("--num=6", "--batch=4", "--method=euler", "--steps=3")
    program("zigma_jax.sample", f"--source={run}", *draw)
    program("zigma_jax.sample", f"--source={run}", f"--output={tmp_path}/samples", *draw)
    for name in ("000005.png", "grid.png"):
        assert (as_path(run) / "samples" / name).read_bytes() == (tmp_path / "samples" / name).read_bytes()
    for source in (run, f"{run}/samples"):
        options = ("--dataset=avatars/tiny", f"--data_dir={data_dir}", "--metrics=kd-full", "--num=6")
        program("zigma_jax.evaluate", f"--source={source}", *options, f"--output={run}/of_{source[-1]}")
    numbers = [json.loads((as_path(run) / name / "evaluation.json").read_text()) for name in ("of_b", "of_s")]
    assert all(number["samples"]["metrics"]["KD-full-effnet"] > 0 for number in numbers)
    program("zigma_jax.convert", f"--source={run}", f"--target={run}/model.safetensors")
    preview = f"--preview={run}/preview.png"
    program("zigma_jax.prepare", "--name=avatars/tiny", f"--data_dir={data_dir}", preview)
    assert (as_path(run) / "preview.png").is_file()

"""Clips through the programs: trained on, stopped and resumed, drawn, played and measured."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import programs
from tests.training.tiny_video import tiny_video_config
from zigma_jax.data.clips.decode import read_clip
from zigma_jax.data.clips.window import Window
from zigma_jax.data.pipeline import make_dataset, open_source
from zigma_jax.errors import ConfigError
from zigma_jax.train import train
from zigma_jax.training.parse_config import from_dict, to_dict
from zigma_jax.training.preview import animation
from zigma_jax.training.sample_directory import SampleDirectory, draws_videos
from zigma_jax.training.samples import PIXELS
from zigma_jax.training.tensorboard import TensorBoard
from zigma_jax.training.weights import load_weights, params_of

VIDEOS = np.random.default_rng(0).integers(0, 256, (5, 3, 9, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.mark.slow
def test_resumed_within_an_epoch_it_is_the_same_run_to_the_bit(tmp_path, data_dir):
    # 24 clips in batches of 8: step 2 is within the first epoch, and the second one begins at step 4.
    options = {"log__preview_every": 4, "data__flip": True, "train__steps": 5}
    assert train(tiny_video_config(data_dir, **options), tmp_path / "whole")
    assert train(tiny_video_config(data_dir, **options | {"train__steps": 2}), tmp_path / "broken")
    assert train(tiny_video_config(data_dir, **options), tmp_path / "broken")
    whole, broken = (params_of(load_weights(tmp_path / name, "ema")[0]) for name in ("whole", "broken"))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(broken), strict=True):
        np.testing.assert_array_equal(one, other)
    previews = [tmp_path / name / "previews" / "0000004.webp" for name in ("whole", "broken")]
    assert previews[0].read_bytes() == previews[1].read_bytes()
    with Image.open(previews[0]) as image:
        assert (image.size, getattr(image, "n_frames", 1)) == ((22, 22), 4)  # 2 × 2 videos of 8 px, gaps of 2

    code, printed = programs.run(
        "zigma_jax.sample", f"--source={tmp_path}/whole", "--num=4", "--batch=3", "--fps=5", "--frames"
    )
    assert code == 0, printed
    samples = tmp_path / "whole" / "samples"
    with np.load(samples / "samples.npz") as file:
        assert file["samples"].shape == (4, 4, 8, 8, 3)
    assert {"000003.mp4", "000003-002.png", "grid.mp4", "grid.png"} <= {path.name for path in samples.iterdir()}
    drawn = []
    for devices in (1, 8):  # the solver's steps amplify the rounding of sums
        output = tmp_path / f"on_{devices}"
        flags = [f"--source={tmp_path}/whole", f"--output={output}", "--num=8", "--batch=8"]
        code, printed = programs.run("zigma_jax.sample", *flags, devices=devices)
        assert code == 0, printed
        with np.load(output / "samples.npz") as file:
            drawn.append(file["samples"].astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
    assert (drawn[0] != drawn[1]).mean() < 0.01
    options = ["--dataset=avatars_moving/tiny", f"--data_dir={data_dir}", "--stride=2", "--metrics=kd-full"]
    code, printed = programs.run(
        "zigma_jax.evaluate", f"--source={samples}", "--network=effnet", *options, "--held_out=test", devices=2
    )
    assert code == 0, printed
    tables = json.loads((tmp_path / "whole" / "evaluation" / "evaluation.json").read_text())
    measured = {name for name, table in tables.items() if isinstance(table, dict) and "metrics" in table}
    assert measured == {"samples", "test", "frozen", "shuffled"}
    assert tables["frozen"]["metrics"]["motion"] == 0
    moving = [tables[name]["metrics"]["motion-distance"] for name in ("test", "frozen")]
    assert moving[0] < moving[1]
    assert tables["reference"]["window"] == "stride 2"


@pytest.mark.slow
@pytest.mark.parametrize("scan", ["video_st", "sweep1", "sweep2", "zigzag3d8", "random2"])
def test_every_order_of_videos_trains(tmp_path, data_dir, scan):
    config = tiny_video_config(data_dir, model__scan=scan, train__steps=2, model__depth=2)
    assert train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)


def test_bytes_become_the_numbers_that_pictures_become(data_dir):
    config = tiny_video_config(data_dir)
    batch = make_dataset(config.data, global_batch=2).batch(0)
    keys = jax.random.split(jax.random.key(0), 2)
    samples = PIXELS({"video": jnp.asarray(batch["video"])}, keys)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, batch["video"] / 127.5 - 1, atol=1e-6)


def test_frames_are_told_once(data_dir):
    config = tiny_video_config(data_dir)
    assert config.model.sample_shape == (4, 8, 8, 3)
    assert from_dict(to_dict(config)) == config
    by_shape = tiny_video_config(data_dir, **{"data.frames": 0, "data.image_size": None, "data.stride": 1,
                                              "model.sample_shape": (4, 8, 8, 3)})  # fmt: skip
    assert (by_shape.data.frames, by_shape.data.size) == (4, (8, 8))
    with pytest.raises(ConfigError, match=r"data\.frames = 5 says otherwise"):
        tiny_video_config(data_dir, **{"data.frames": 5, "data.image_size": None, "model.sample_shape": (4, 8, 8, 3)})
    with pytest.raises(ConfigError, match=r"model\.sample_shape"):
        tiny_video_config(data_dir, **{"model.sample_shape": (8, 8, 3)})


@pytest.mark.parametrize("movies", [True, False])
def test_a_directory_of_videos_plays(tmp_path, monkeypatch, movies):
    monkeypatch.setattr("zigma_jax.training.sample_directory.can_write_movies", lambda: movies)
    end = ".mp4" if movies else ".webp"
    options = {"settings": {"seed": 0}, "about": {}, "shape": (3, 9, 16, 3)}
    options["arrays"] = {"samples": ((3, 9, 16, 3), np.uint8)}
    for count in (2, 5):  # the second goes on where the first was stopped
        with SampleDirectory(tmp_path, 5, **options, fps=4.0, frames=True) as directory:
            added = VIDEOS[directory.count : count]
            directory.add(added, samples=added)
            if count == 5:
                directory.finish(None)
    frames = [f"00000{i}-00{frame}.png" for i in range(5) for frame in range(3)]
    names = [*frames, *(f"00000{i}{end}" for i in range(5)), f"grid{end}", "grid.png", "manifest.json", "samples.npz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert draws_videos(tmp_path)
    with Image.open(tmp_path / "000004-001.png") as frame:
        np.testing.assert_array_equal(np.asarray(frame), VIDEOS[4, 1])
    with np.load(tmp_path / "samples.npz") as file:
        assert file["samples"].shape == VIDEOS.shape
    assert read_clip(tmp_path / f"grid{end}", Window(3), 0.0, (35, 56)).shape == (3, 35, 56, 3)
    if movies:
        timed = read_clip(tmp_path / "000000.mp4", Window(3, fps=4.0, short="refuse"), 0.0, (9, 16))
        assert np.abs(timed[0].astype(int).mean() - VIDEOS[0, 0].mean()) < 8
    with pytest.raises(ConfigError, match=r"fps: 4\.0 there, 8\.0 now"), SampleDirectory(tmp_path, 5, **options):
        pass


def test_tensorboard_plays_a_gif(tmp_path):
    board = TensorBoard(tmp_path, 0)
    gif = animation(VIDEOS, ".gif", 4.0)
    board.clip(3, "samples", gif)
    board.close()
    (events,) = tmp_path.iterdir()
    assert gif in events.read_bytes()
    with Image.open(io.BytesIO(gif)) as image:
        assert getattr(image, "n_frames", 1) == 3


def test_clips_are_the_same_on_any_number_of_processes(data_dir):
    config = tiny_video_config(data_dir).data
    whole = make_dataset(config, global_batch=8, seed=4)
    parts = [make_dataset(config, global_batch=8, seed=4, process_index=p, process_count=8) for p in range(8)]
    for step in (0, 5):
        found = np.concatenate([part.batch(step)["video"] for part in parts])
        np.testing.assert_array_equal(found, whole.batch(step)["video"])
    assert len(open_source(config)) == 24

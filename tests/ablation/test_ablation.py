"""The ablation: what it leaves, what it makes again and what not, and that its runs can be compared."""

import dataclasses
import itertools
import json
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests import programs
from zigma_jax.ablation.__main__ import ablate
from zigma_jax.ablation.config import default_ablation, parse_experiment
from zigma_jax.ablation.distance import colours_and_changes, make_statistics, mean_colours
from zigma_jax.ablation.pictures import load_pictures, training_batches
from zigma_jax.ablation.report import make_table, write_report
from zigma_jax.ablation.run import Runner, make_programs, shared_initial_params
from zigma_jax.data.sources import prepare
from zigma_jax.metrics import frozen
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.families import build
from zigma_jax.training.array_store import flatten
from zigma_jax.training.sharding import make_mesh
from zigma_jax.training.step import batch_loss, sample_keys

pytestmark = pytest.mark.slow  # every one of its comparisons trains several models

FIELDS = {
    "data.name": "avatars/tiny",
    "data.image_size": 8,
    "data.flip": True,
    "model.patch_size": 4,
    "model.hidden_size": 16,
    "model.depth": 2,
    "model.state_size": 4,
    "model.drop_path_rate": 0.0,
    "train.batch_size": 16,
    "train.steps": 4,
    "train.ema_decay": 0.5,
    "sample.method": "euler",
    "sample.steps": 3,
    "ablation.scans": ("sweep1", "random1"),
    "ablation.seeds": (0,),
    "ablation.evaluations": 2,
    "ablation.distances": 1,
    "ablation.samples": 24,
    "ablation.batch": 16,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    prepare("avatars/tiny", str(directory))
    return directory


def tiny(data_dir, **changes):
    config = default_ablation()
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    for name, value in (FIELDS | {"data.data_dir": str(data_dir)} | changes).items():
        section, field = name.split(".")
        config[section][field] = value
    return parse_experiment(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("ablation")
    return workdir, ablate(tiny(data_dir), workdir)


def records(workdir):
    return {path.stem: json.loads(path.read_text()) for path in sorted((workdir / "records").iterdir())}


def test_it_leaves_records_samples_table_and_figure(finished):
    workdir, table = finished
    made = records(workdir)
    assert list(made) == ["random1-0", "sweep1-0"]
    for record in made.values():
        assert [point["step"] for point in record["curve"]] == [2, 4]
        assert ["distance" in point for point in record["curve"]] == [False, True]
        assert all(0.1 < point[name] < 10 for point in record["curve"] for name in ("loss", "train_loss"))
        assert record["seconds"]["training"] > 0
        assert record["device"].startswith("8 × ")
    assert table == (workdir / "table.md").read_text()
    assert f"| sweep1 | {made['sweep1-0']['parameters']:,} |" in table
    assert f"{made['random1-0']['curve'][-1]['loss']:.5f}" in table
    with Image.open(workdir / "curves.png") as figure:
        assert min(figure.size) > 500
    with Image.open(workdir / "samples" / "random1-0.png") as grid:
        assert grid.size == (52, 52)  # 5 columns and rows of 8 px, gaps of 2


def test_it_goes_on_with_what_is_missing(finished, data_dir, monkeypatch):
    workdir, table = finished
    before = records(workdir)
    lost = workdir / "records" / "random1-0.json"
    lost.unlink()

    made, run, compiled = [], Runner.run, []

    def watched(self, scan, seed, advance):
        made.append((scan, seed))
        compiled.append(self)
        return run(self, scan, seed, advance)

    monkeypatch.setattr(Runner, "run", watched)
    # The pictures are in the workdir by now: the data set is not needed any more.
    ablate(tiny("/nowhere", ablation__seeds=(0, 1)), workdir)
    assert made == [("random1", 0), ("sweep1", 1), ("random1", 1)]
    assert compiled[0]._programs["random1"].step._cache_size() == 1  # for both seeds
    assert compiled[0]._programs["random1"].validate._cache_size() == 1
    after = records(workdir)
    assert after["random1-0"]["curve"] == before["random1-0"]["curve"]  # a run depends on nothing but its settings
    assert after["random1-1"]["curve"] != before["random1-0"]["curve"]
    assert " ± " in (workdir / "table.md").read_text()

    with pytest.raises(ValueError, match=r"another configuration(?s:.*)model.state_size: 4 there, 8 now"):
        ablate(tiny(data_dir, model__state_size=8, ablation__scans=("zigzag2",)), workdir)
    for name in ("sweep1-1", "random1-1"):
        (workdir / "records" / f"{name}.json").unlink()
    assert len(made) == 3
    assert write_report(workdir).splitlines()[2] == table.splitlines()[2]


def test_pictures_of_another_data_set_are_refused(finished, data_dir):
    workdir, _ = finished
    config = tiny(data_dir).base.data
    with pytest.raises(ValueError, match=r"holds pictures of .*test.*choose another workdir"):
        load_pictures(config, "train[:16]", workdir / "pictures.npz")


def test_the_program_reports_and_answers_mistakes_in_one_line(finished):
    def program(*arguments):
        return programs.run("zigma_jax.ablation", f"--workdir={finished[0]}", *arguments)

    (finished[0] / "curves.png").unlink()
    code, output = program("--report")
    assert code == 0, output
    assert (finished[0] / "table.md").read_text() in output
    assert (finished[0] / "curves.png").exists()
    code, output = program("--config.ablation.scans=('zigzag8','zagzig')")
    assert code == 1
    assert "Traceback" not in output
    assert "'zagzig': no such backbone" in output


@pytest.mark.parametrize("scan", ["sweep2", "zigzag2"])
def test_every_order_starts_from_the_same_weights(data_dir, scan):
    """All of them but sweep2's second direction: conv, x_proj, dt_proj, dt_bias, A, D once more in each layer."""
    model = tiny(data_dir).run(scan, 5).model
    assert isinstance(model, ZigMaConfig)
    init = {s: jax.jit(partial(shared_initial_params, dataclasses.replace(model, scan=s))) for s in ("sweep1", scan)}
    start = {s: flatten(init[s](5)) for s in init}
    for name, value in start["sweep1"].items():
        np.testing.assert_array_equal(value, start[scan][name], err_msg=name)
    more = start[scan].keys() - start["sweep1"].keys()
    assert all("ssm_reverse" in name for name in more)
    inner, n, rank = model.inner_size, model.state_size, model.dt_rank
    second = model.depth * inner * (4 + 1 + (rank + 2 * n) + rank + 1 + n + 1)
    assert sum(start[scan][name].size for name in more) == (second if scan == "sweep2" else 0)
    other = flatten(init[scan](6))
    assert not np.array_equal(other["out/kernel"], start[scan]["out/kernel"])


def test_a_step_sees_what_the_trainers_would(data_dir, finished):
    """The loss of its first step is `batch_loss` of the pictures, mirrored as they should be, with the seed's draws."""
    config = tiny(data_dir).run("random1", 3)
    pictures = load_pictures(config.data, "test", finished[0] / "pictures.npz").train
    programs = make_programs(config, make_mesh(), config.interpolant)
    rows, mirrored = next(training_batches(len(pictures), 16, 3, True))
    image = pictures[rows].astype(np.float32) / np.float32(127.5) - 1
    image = np.where(mirrored[:, None, None, None], image[:, :, ::-1], image)
    state = programs.init(3)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(config.model, rngs=nnx.Rngs(0))))
    loss = jax.jit(partial(batch_loss, graphdef, config.interpolant))
    expected = loss(state.params, {"image": jax.device_put(image)}, sample_keys(3, jax.numpy.int32(0), 16))
    _, metrics = programs.step(state, 3, pictures, rows, mirrored)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)  # a few roundings of a mean


def test_batches_cover_every_epoch_and_belong_to_the_seed():
    def first(seed, flip=True):
        return list(itertools.islice(training_batches(10, 4, seed, flip), 5))

    rows = np.concatenate([rows for rows, _ in first(0)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    for (a, b), (c, d) in zip(first(1), first(1), strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
    assert rows.tolist() != np.concatenate([rows for rows, _ in first(1)]).tolist()
    assert 0 < sum(mirrored.sum() for _, mirrored in first(0)) < 20
    assert not any(mirrored.any() for _, mirrored in first(0, flip=False))


def test_features_are_mean_colours():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    found = mean_colours(pictures).reshape(3, 8, 8, 3)
    assert found[1, 2, 7, 0] == pytest.approx(pictures[1, 4:6, 21:24, 0].mean() / 127.5 - 1, abs=1e-6)


def test_a_networks_features_do_not_depend_on_the_batch(monkeypatch):
    """A stand-in for the network: what is filled up at the end of the last batch must not count."""

    def network(images):
        return {"pool": images.reshape(len(images), -1)[:, :5].astype(np.float32)}

    monkeypatch.setattr("zigma_jax.networks.load_network", lambda name: jax.tree_util.Partial(network))
    pictures = np.random.default_rng(0).integers(0, 256, (21, 4, 4, 3), dtype=np.uint8)
    found = make_statistics("effnet", make_mesh(), 8)(pictures)
    rows = pictures.reshape(21, -1)[:, :5].astype(np.float64)
    assert found.count == 21
    np.testing.assert_allclose(found.mean, rows.mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False))


def test_the_tables_numbers():
    """Means and sample deviations over seeds; differences seed by seed, of the seeds that both orders have."""

    def record(scan, seed, loss, distance):
        return {
            "scan": scan,
            "seed": seed,
            "curve": [{"step": 5, "loss": 1.0}, {"step": 10, "loss": loss, "distance": distance}],
            "parameters": 1234,
            "seconds": {"training": 0.2 + seed},
            "distance": "FD-colour",
            "distance_means": "…",
            "data": {"set": "avatars", "held_out": "test"},
            "settings": {"train": {"batch_size": 8}, "ablation": {"samples": 100}},
            "device": "1 × cpu",
            "versions": {"jax": "0"},
        }

    runs = {
        "sweep1": [record("sweep1", 0, 0.5, 4.0), record("sweep1", 1, 0.7, 6.0)],
        "zigzag8": [record("zigzag8", 1, 0.6, 4.5), record("zigzag8", 0, 0.45, 3.0), record("zigzag8", 2, 0.6, 3.0)],
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in make_table(runs, 0.123).splitlines()[:4]]
    assert rows[2] == ["sweep1", "1,234", "10", "20", "2", "0.60000 ± 0.14142", "", "5.000 ± 1.414", ""]
    assert rows[3] == [
        "zigzag8",
        "1,234",
        "10",
        "20",
        "3",
        "0.55000 ± 0.08660",
        "-0.07500 ± 0.03536",
        "3.500 ± 0.866",
        "-1.250 ± 0.354",
    ]
    assert "have 0.123" in make_table(runs, 0.123)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ablation__scans": ("sweep1", "zagzig")}, r"'zagzig': no such backbone"),
        ({"ablation__scans": ("sweep1", "sweep1")}, r"config.ablation.scans = .*none twice"),
        ({"ablation__scans": ("sweep1", "zigzag8")}, r"config.model.depth = 2: .*multiple of the 8 paths of zigzag8"),
        (
            {"ablation__scans": ("sweep1 model.depth=4",)},
            r"config.ablation.scans = 'sweep1 model.depth=4': a backbone, and",
        ),
        ({"ablation__scans": ("sweep1 train.steps=4",)}, r"ablation.scans = .*not train.seed, train.steps"),
        ({"ablation__scans": ("sweep1 optimizer.name=muon",)}, r"config.optimizer.name: no such field"),
        (
            {"ablation__scans": ("sweep1 interpolant.prediction=noise",)},
            r"config.interpolant = .*could not be compared",
        ),
        ({"ablation__seeds": ()}, r"config.ablation.seeds = \(\): must have one entry"),
        ({"ablation__seeds": (-1,)}, r"config.ablation.seeds = -1: must lie in"),
        ({"ablation__seeds": ("a",)}, r"config.ablation.seeds = 'a': must be of type int"),
        ({"ablation__evaluations": 3}, r"config.train.steps = 4: .*ablation.evaluations = 3"),
        ({"ablation__evaluations": 4, "ablation__distances": 3}, r"config.ablation.distances = 3: must divide"),
        ({"ablation__samples": 1}, r"config.ablation.samples = 1: must lie in"),
        ({"model__num_classes": 20}, r"config.model.num_classes = 20: the ablation is unconditional"),
        ({"data__image_size": 12}, r"config.data.image_size = \(12, 12\): must be a multiple of 8"),
        ({"ablation__features": "fid"}, r"config.ablation.features = 'fid': must be one of colour, effnet"),
        (
            {"ablation__features": "motion"},
            r"config.ablation.features = .motion.: must be one of colour, effnet for a model of pictures",
        ),
        ({"train__fsdp": 2}, r"config.train.fsdp = 2: "),
    ],
)
def test_what_cannot_be_compared_is_refused(data_dir, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(data_dir, **changes)


def test_refusals_that_need_the_devices_or_the_records(data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"config.train.batch_size = 12: must be divisible by the number of devices"):
        ablate(tiny(data_dir, train__batch_size=12), tmp_path)
    with pytest.raises(ValueError, match=r"config.ablation.batch = 12: must be divisible by 8 devices"):
        ablate(tiny(data_dir, ablation__batch=12), tmp_path)
    with pytest.raises(ValueError, match=r"has no records of an ablation yet"):
        write_report(tmp_path)
    misspelt = {"ablation": {"sedes": (0,)}, "data": {"image_size": 8}}
    with pytest.raises(ValueError, match=r"config.ablation.sedes: no such field; did you mean ablation.seeds"):
        parse_experiment(misspelt)


def test_the_packaged_configurations_are_sound():
    import importlib

    video = parse_experiment(importlib.import_module("configs.ablation_video").get_config())
    assert video.run("video_sst", 0).model.sample_shape == (8, 32, 32, 3)
    for name in ("ablation", "ablation_gpu"):
        experiment = parse_experiment(importlib.import_module(f"configs.{name}").get_config())
        assert len(experiment.ablation.scans) == 7
        assert len(experiment.ablation.seeds) >= 3
        assert dataclasses.replace(experiment.base.data, split="test").size == (32, 32)


def test_a_run_may_have_fields_of_its_own(data_dir, tmp_path):
    names = ("random1", "random1 optimizer.algorithm=muon", "random1 interpolant.prediction=data train.ema_decay=0.9")
    experiment = tiny(data_dir, ablation__scans=names)
    muon, data = (experiment.run(name, 0) for name in names[1:])
    assert (muon.optimizer.algorithm, muon.interpolant) == ("muon", experiment.base.interpolant)
    assert (data.interpolant.prediction, data.train.ema_decay, data.optimizer.algorithm) == ("data", 0.9, "adamw")
    table = ablate(experiment, tmp_path)
    losses = [record["curve"][-1]["loss"] for record in records(tmp_path).values()]
    assert len(losses) == len(set(losses)) == 3
    assert f"| {names[2]} | " in table
    # Another distribution of times is for training alone: what is measured stays the same.
    times = experiment.run("random1 interpolant.time_sampling=logit_normal", 0)
    assert experiment.judged_by(times) == experiment.base.interpolant != times.interpolant


def test_orders_of_clips(tmp_path):
    prepare("avatars_moving/tiny", str(tmp_path / "data"))
    clips = {"data__name": "avatars_moving/tiny", "data__frames": 4, "model__temporal_pos_embed": True}
    changes = clips | {"ablation__scans": ("sweep1", "video_st"), "ablation__features": "motion"}
    table = ablate(tiny(tmp_path / "data", **changes), tmp_path / "runs")
    found = records(tmp_path / "runs")
    assert set(found) == {"sweep1-0", "video_st-0"}
    assert len({record["parameters"] for record in found.values()}) == 1
    assert found["sweep1-0"]["data"]["window"] == '{"frames": 4, "stride": 1, "fps": null, "short": "loop"}'
    assert "mean changes from frame to frame" in table
    with Image.open(tmp_path / "runs" / "samples" / "video_st-0.webp") as film:
        assert film.n_frames == 4  # pyright: ignore[reportAttributeAccessIssue]


def test_the_features_of_clips_see_whether_they_move():
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (5, 3, 16, 24, 3), np.uint8)
    found = colours_and_changes(clips)
    assert found.shape == (5, 384)
    np.testing.assert_allclose(
        found[:, :192], np.mean([mean_colours(clips[:, i]) for i in range(3)], axis=0), atol=1e-6
    )
    steps = [np.abs(mean_colours(clips[:, i + 1]) - mean_colours(clips[:, i])) for i in range(2)]
    np.testing.assert_allclose(found[:, 192:], np.mean(steps, axis=0), atol=1e-6)
    assert not colours_and_changes(frozen(clips))[:, 192:].any()


def test_other_backbones_and_as_much_time_for_each(data_dir, tmp_path):
    names = ("sweep1", "mamba2/random1", "hybrid2", "attention", "sit")
    changes = {"ablation__scans": names, "ablation__equal": "time", "model__depth": 4, "train__steps": 8}
    experiment = tiny(data_dir, **changes)
    table = ablate(experiment, tmp_path)
    seconds = json.loads((tmp_path / "step_seconds.json").read_text())
    for name in names:
        record = records(tmp_path)[f"{name.replace('/', '_')}-0"]
        steps = record["curve"][-1]["step"]
        assert steps == (8 if name == "sweep1" else experiment.steps_of(seconds[name], seconds["sweep1"]))
        assert f"| {name} | {record['parameters']:,} | {steps:,} |" in table
    assert "After as much time in training each" in table
    again = experiment.run("mamba2/random1", 0, 4)
    assert (again.model.mixer, again.model.scan, again.train.steps) == ("mamba2", "random1", 4)
    assert [experiment.steps_of(t, 1.0) for t in (0.5, 1.0, 3.0, 100.0)] == [16, 8, 2, 2]

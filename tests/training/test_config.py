"""A configuration is refused with field, value and rule before anything is compiled."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import pytest
from absl import flags as absl_flags
from ml_collections import config_flags

from tests.training.tiny import tiny_config
from zigma_jax.ablation.config import parse_experiment
from zigma_jax.errors import ConfigError
from zigma_jax.training.config import RunConfig, SampleConfig
from zigma_jax.training.parse_config import default_config, describe_fields, from_dict, section_fields, to_dict

CONFIGS = sorted(Path("configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_says_how_to_run_it(path):
    module = load(path)
    config = module.get_config()
    config = parse_experiment(config).base if "ablation" in config else from_dict(config)
    assert f"--config=configs/{path.name}" in str(module.__doc__)
    *frames, height, width, channels = config.model.sample_shape
    assert frames == ([config.data.frames] if config.data.frames else [])
    if config.latent.autoencoder:
        assert (8 * height, 8 * width) == config.data.size
        assert channels in (4, 32)
    else:
        assert (height, width, channels) == (*config.data.size, 3)


def test_json_round_trip():
    config = tiny_config("somewhere")
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("train", "stepz", 3, r"config.train.stepz: no such field; did you mean train.steps\?"),
        ("trian", "steps", 3, r"config.trian: no such field; did you mean train\?"),
        ("train", "steps", "many", "config.train.steps = 'many': must be of type int, not str"),
        ("train", "steps", True, "config.train.steps = True: must be of type int, not bool"),
        ("train", "steps", 0, "config.train.steps = 0: must be at least 1"),
        ("train", "accumulate", 3, "config.train.accumulate = 3: must divide train.batch_size = 16"),
        ("train", "label_dropout", 1.5, "config.train.label_dropout = 1.5"),
        ("model", "patch_size", 3, "patch_size = 3: must divide the sample's height and width, which are 8 × 8"),
        ("model", "null_class", False, "config.train.label_dropout = 0.2: needs model.null_class"),
        ("model", "sample_shape", (9, 9, 3), "config.data.image_size = .*says otherwise"),
        ("data", "image_size", 33, "config.data.image_size = 33: model.sample_shape"),
        ("data", "max_bad_fraction", 2.0, "data.max_bad_fraction=2.0"),
        ("latent", "weights", "x", "config.latent.weights = 'x': needs latent.autoencoder"),
        ("optimizer", "schedule", "linear", "config.optimizer.schedule = 'linear': must be one of constant, cosine"),
        ("optimizer", "learning_rate", -1.0, "config.optimizer.learning_rate = -1.0: must be positive"),
        ("interpolant", "path", "cubic", "cubic"),
        ("checkpoint", "every", 0, "config.checkpoint.every = 0"),
        ("log", "preview_count", 0, "config.log.preview_count = 0"),
        ("eval", "every", -1, "config.eval.every = -1: must not be negative; 0 is never"),
        ("eval", "samples", 1, "config.eval.samples = 1: must be at least 2"),
        ("eval", "metrics", ["fd", "fid"], r"config.eval.metrics = \('fd', 'fid'\): must be some of fd, sfd"),
        ("eval", "metrics", [], r"config.eval.metrics = \(\): must be some of fd, sfd"),
        ("sample", "steps", 1, "config.sample.steps = 1 time points; there must be at least 2"),
        ("sample", "steps", 0, "config.sample.steps = 0 time points"),
        ("sample", "steps", "many", "config.sample.steps = 'many': must be of type int"),
        ("sample", "steps", [0.0, 0.6, 0.5], r"config.sample.steps\[1\] = 0.6 is followed by 0.5: times must increase"),
        (
            "sample",
            "method",
            "rk45",
            "'rk45': must be one of euler, midpoint, heun, rk4, bosh3, .*, sde_euler, sde_heun",
        ),
        ("sample", "shift", -1.0, "config.sample.shift = -1.0 must be positive"),
        ("sample", "guidance_interval", [0.5, 0.2], r"config.sample.guidance interval = \(0.5, 0.2\) must be"),
        ("sample", "diffusion", "SBDM", "config.sample.diffusion = 'SBDM': must be one of constant, sbdm"),
        ("sample", "last_step", "Mean", "config.sample.last_step = 'Mean': must be one of mean, tweedie"),
        ("sample", "last_step_size", 1.0, r"config.sample.last_step_size = 1.0: must be in \(0, 1\)"),
    ],
)
def test_what_is_wrong_is_named(section, field, value, message):
    sections = to_dict(tiny_config("somewhere"))
    sections.setdefault(section, {})[field] = value
    with pytest.raises(ValueError, match=message):
        from_dict(sections)


def test_guidance_needs_a_model_that_was_trained_for_it():
    with pytest.raises(ValueError, match=r"config.sample.guidance = 3.0: needs a model .* model.null_class = True"):
        tiny_config("somewhere", sample__guidance=3.0, model__null_class=False, train__label_dropout=0.0)


def test_time_points_one_by_one():
    config = dataclasses.replace(tiny_config("somewhere"), sample=SampleConfig("heun", steps=(0.0, 0.3, 1.0)))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_the_size_of_samples_is_said_once():
    config = default_config()
    with pytest.raises(ValueError, match=r"config.data.image_size = None: give it"):
        from_dict(config)
    config.model.sample_shape = (48, 32, 3)
    assert from_dict(config).data.size == (48, 32)
    config.data.image_size = 64
    with pytest.raises(ValueError, match="says otherwise"):
        from_dict(config)


def test_a_model_with_text_is_refused_before_anything_is_compiled():
    with pytest.raises(ConfigError, match=r"config.model.context_size = 8: is the width"):
        tiny_config(
            "somewhere", model__context_size=8, model__num_classes=0, model__null_class=False, train__label_dropout=0.0
        )


def test_a_shape_that_no_autoencoder_makes_is_refused():
    sections = to_dict(tiny_config("somewhere"))
    sections["latent"]["autoencoder"] = "taef2:somewhere"
    sections["data"]["image_size"], sections["model"]["sample_shape"] = (16, 24), (8, 8, 4)
    with pytest.raises(ConfigError, match=r"config.model.sample_shape = \(8, 8, 4\): .* follows from the autoencoder"):
        from_dict(sections)
    sections["model"]["sample_shape"] = (8, 12, 4)
    assert from_dict(sections).model.sample_shape == (8, 12, 4)
    sections["data"]["image_size"] = None
    with pytest.raises(ConfigError, match=r"config.data.image_size = None: give the size of the pictures"):
        from_dict(sections)


@pytest.mark.filterwarnings("ignore:the load_module.. method:DeprecationWarning")  # ml_collections' own
@pytest.mark.parametrize(
    ("flag", "path", "value"),
    [
        ("--config.data.image_size=12,20", "data.size", (12, 20)),
        ("--config.data.image_size=(12, 20)", "data.size", (12, 20)),
        ("--config.sample.steps=0,0.3,1", "sample.steps", (0.0, 0.3, 1.0)),
        ("--config.sample.steps=7", "sample.steps", 7),
        ("--config.sample.guidance_interval=[0.1, 0.5]", "sample.guidance_interval", (0.1, 0.5)),
        ("--config.eval.metrics=fd,kd", "eval.metrics", ("fd", "kd")),
        ("--config.eval.metrics=kd", "eval.metrics", ("kd",)),
        ("--config.latent.scale=0.5", "latent.scale", 0.5),
        ("--config.interpolant.train_eps=0.01", "interpolant.train_eps", 0.01),
        ("--config.data.folder=1", "data.folder", "1"),
    ],
)
def test_flags_of_every_kind(flag, path, value, monkeypatch):
    flags = absl_flags.FlagValues()
    monkeypatch.setattr("sys.argv", ["train", "--config=configs/quickstart.py", "--config.sample.method=heun", flag])
    config = config_flags.DEFINE_config_file("config", flag_values=flags, lock_config=True)
    flags(["train", "--config=configs/quickstart.py", "--config.sample.method=heun", flag])
    found = from_dict(config.value)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_help_lists_every_field_with_its_meaning():
    text = describe_fields()
    for section in dataclasses.fields(RunConfig):
        for field in section_fields(section.name).values():
            entry = text.partition(f"--config.{section.name}.{field.name}  ")[2].splitlines()
            assert "by default" in entry[0]
            assert len(entry[1].strip()) > 5, f"{section.name}.{field.name} has no line in its docstring"


# Numbers that are sensible although they are -1, or as large as 1e38.
ALLOWED = {("interpolant", "logit_mean", -1), ("sample", "guidance", -1), ("optimizer", "clip_norm", 1e38)}


def number_fields():
    for section, fields in to_dict(tiny_config("somewhere")).items():
        for name, value in fields.items():
            if isinstance(value, float) or (type(value) is int and section != "model" and name != "image_size"):
                yield section, name, type(value)


@pytest.mark.parametrize(("section", "field", "kind"), list(number_fields()))
def test_every_number_has_a_range(section, field, kind):
    """NaN, infinity, -1 and far too much: refused, with section and field named."""
    for value in (math.nan, math.inf, -math.inf, -1.0, 1e38, 1e300) if kind is float else (-1, 2**40, 2**70):
        sections = to_dict(tiny_config("somewhere"))
        sections[section][field] = value
        if (section, field, value) in ALLOWED:
            from_dict(sections)
        else:
            with pytest.raises(ValueError, match=field):
                from_dict(sections)


def test_times_and_intervals_are_finite():
    with pytest.raises(ConfigError, match="must be finite"):
        SampleConfig(method="euler", steps=(0.0, math.nan))
    with pytest.raises(ConfigError, match="must be finite"):
        SampleConfig(guidance_interval=(0.0, math.nan))

"""What the ablation varies and measures, beside a run's own configuration."""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import config_dict

from zigma_jax.interpolant import Interpolant
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.families import family_of
from zigma_jax.models.orders import scan_orders
from zigma_jax.models.variants import variant
from zigma_jax.training.config import RunConfig, require
from zigma_jax.training.parse_config import default_config, from_dict, parse_section, to_dict

SCANS = ("sweep1", "sweep2", "zigzag1", "zigzag2", "zigzag8", "hilbert8", "random8")
CELLS = 8  # the features "colour" and "motion" are those of CELLS × CELLS parts of a picture
FEATURES = {"pictures": ("colour", "effnet"), "clips": ("motion", "transnetv2")}
_MOST_SEEDS = 10_000
_VARIED = ("optimizer", "interpolant", "train")  # sections of which a run may have fields of its own
_SHARED = ("train.seed", "train.steps", "train.batch_size", "train.fsdp", "train.seq", "train.cpu_devices")


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """ablation.*

    Attributes:
        scans: the orders compared, and other backbones by name (`zigma_jax.models.variants`): "mamba2", "attention",
            "hybrid4", "sit". Fields of the sections optimizer, interpolant and train may follow:
            "zigzag8 optimizer.algorithm=muon", "zigzag8 interpolant.prediction=data".
        equal: "steps", or "time": each is trained for as many steps as take it as long as train.steps take the first.
        seeds: each order is trained once with each; a seed decides initial weights, order of the data, noise and
            times in training, and noise in sampling.
        held_out: the split of the data set that losses and distances are measured on.
        evaluations: so many times, evenly over the run and at its end, the held-out loss is measured.
        distances: so many times, likewise, the Fréchet distance is.
        samples: pictures drawn for each distance.
        features: what the distance compares: "colour", or "effnet", a network (docs/networks.md); of clips "motion",
            colours and how they change, or "transnetv2".
        batch: pictures at a time in all of these.
    """

    scans: tuple[str, ...] = SCANS
    equal: Literal["steps", "time"] = "steps"
    seeds: tuple[int, ...] = (0, 1, 2)
    held_out: str = "test"
    evaluations: int = 8
    distances: int = 4
    samples: int = 1000
    features: Literal["colour", "effnet", "motion", "transnetv2"] = "colour"
    batch: int = 128

    def __post_init__(self):
        for name in ("scans", "seeds"):
            values = getattr(self, name)
            rule = "must have one entry at least, and none twice"
            require(0 < len(values) == len(set(values)), f"ablation.{name}", values, rule)
        for seed in self.seeds:
            require(0 <= seed < _MOST_SEEDS, "ablation.seeds", seed, f"must lie in [0, {_MOST_SEEDS})")
        for name in ("evaluations", "distances", "batch"):
            require(getattr(self, name) >= 1, f"ablation.{name}", getattr(self, name), "must be at least 1")
        require(2 <= self.samples <= 100_000, "ablation.samples", self.samples, "must lie in [2, 100,000]")
        require(
            self.evaluations % self.distances == 0,
            "ablation.distances",
            self.distances,
            f"must divide ablation.evaluations = {self.evaluations}",
        )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All runs of an ablation: `base` with each scan and each seed. Raises ValueError for what cannot be compared."""

    base: RunConfig
    ablation: AblationConfig

    def __post_init__(self):
        model, train = self.base.model, self.base.train
        require(
            train.steps % self.ablation.evaluations == 0,
            "train.steps",
            train.steps,
            f"must be a multiple of ablation.evaluations = {self.ablation.evaluations}",
        )
        require(isinstance(model, ZigMaConfig), "model.family", family_of(model), "the orders are those of a zigma")
        assert isinstance(model, ZigMaConfig)
        for field in ("num_classes", "context_size"):
            require(not getattr(model, field), f"model.{field}", getattr(model, field), "the ablation is unconditional")
        require(train.fsdp == 1, "train.fsdp", train.fsdp, "the ablation keeps its state whole: must be 1")
        features, kind = self.ablation.features, "clips" if len(model.sample_shape) == 4 else "pictures"
        rule = f"must be one of {', '.join(FEATURES[kind])} for a model of {kind}"
        require(features in FEATURES[kind], "ablation.features", features, rule)
        require(
            features not in ("colour", "motion") or all(pixels % CELLS == 0 for pixels in model.sample_shape[-3:-1]),
            "data.image_size",
            model.sample_shape[-3:-1],
            f"must be a multiple of {CELLS} for ablation.features = {features!r}",
        )
        for scan in self.ablation.scans:
            cfg = self.run(scan, self.ablation.seeds[0]).model
            if isinstance(cfg, ZigMaConfig) and cfg.mixer != "attention":
                scanning = sum(not cfg.attends(layer) for layer in range(cfg.depth))
                period = scan_orders(cfg.scan, cfg.grid, seed=cfg.scan_seed).period
                if cfg.scan.startswith("video_"):  # each kind of layer equally often; of space, there are eight paths
                    period = len(cfg.scan.removeprefix("video_"))
                rule = f"must be a multiple of the {period} paths of {scan}, so that each is used equally often"
                require(scanning % period == 0 or cfg.attention_every > 0, "model.depth", model.depth, rule)

    def run(self, scan: str, seed: int, steps: int | None = None) -> RunConfig:
        """The configuration of one run, of other `steps` than the base's if given."""
        backbone, *changes = scan.split(" ")
        config = to_dict(self.base)
        for change in changes:
            name, equals, value = change.partition("=")
            section, _, field = name.partition(".")
            rule = f"a backbone, and then SECTION.FIELD=VALUE of {', '.join(_VARIED)}; not {', '.join(_SHARED)}"
            require(bool(equals) and section in _VARIED and name not in _SHARED, "ablation.scans", scan, rule)
            config[section][field] = _value(value)
        config = from_dict(config)
        train = dataclasses.replace(config.train, seed=seed, steps=steps or self.base.train.steps)
        assert isinstance(self.base.model, ZigMaConfig)
        config = dataclasses.replace(config, model=variant(self.base.model, backbone), train=train)
        self.judged_by(config)
        return config

    def judged_by(self, config: RunConfig) -> Interpolant:
        """The objective of a run's held-out loss: that of `base`, so that losses can be compared, whatever it is
        trained on. Raises ConfigError where there is none."""
        base, own = self.base.interpolant, config.interpolant
        comparable = own.path == base.path and {own.prediction, base.prediction} <= {"velocity", "data"}
        if comparable:  # the loss of a data prediction is that of the velocity that follows from it
            return dataclasses.replace(base, prediction=own.prediction)
        rule = f"its loss could not be compared with that of path = {base.path}, prediction = {base.prediction}"
        require(own == base, "interpolant", f"{own.path}, {own.prediction}", rule)
        return base

    def steps_of(self, seconds: float, first: float) -> int:
        """Training steps of a backbone whose step takes `seconds`, as long as train.steps of one that takes `first`.

        A multiple of the evaluations, at least one each.
        """
        every = self.ablation.evaluations
        return max(1, round(self.base.train.steps * first / seconds / every)) * every

    def settings(self) -> dict[str, dict[str, Any]]:
        """What every run of the comparison must share: the fields that can change a number."""
        settings = {"ablation": dataclasses.asdict(self.ablation), **to_dict(self.base)}
        varied = {
            "ablation": ("scans", "seeds", "batch"),
            "model": ("scan",),
            "train": ("seed", "cpu_devices", "max_skipped"),
        }
        unseen = {"data": ("data_dir", "workers", "max_bad_fraction")}
        for section, fields in (varied | unseen).items():
            for field in fields:
                del settings[section][field]
        del settings["log"], settings["checkpoint"]
        return settings


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def default_ablation() -> Any:
    """`default_config` with a section `ablation`, to be changed by a config file and by flags."""
    config = default_config()
    with config.unlocked():
        config.ablation = config_dict.ConfigDict(dataclasses.asdict(AblationConfig()))
    return config


def parse_experiment(config: Mapping[str, Any] | config_dict.ConfigDict) -> Experiment:
    """The experiment that a config file and its flags describe. Raises ValueError naming field, value and rule."""
    sections = dict(config)
    ablation = parse_section(AblationConfig, "ablation", sections.pop("ablation", {}))
    return Experiment(from_dict(sections), ablation)

"""A run's configuration: typed sections with their defaults, and the way to and from ml_collections.

`configs/*.py` start from `default_config()` and change fields; the programs turn the result into a `RunConfig`,
which refuses unknown fields, wrong types and impossible values before anything is compiled.
"""

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, get_args, get_origin

from ml_collections import config_dict

from zigma_jax.data.pipeline import DataConfig
from zigma_jax.interpolant import Interpolant
from zigma_jax.models.config import ZigMaConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """train.*

    Attributes:
        steps: training steps in all.
        batch_size: samples a step, over all devices and processes.
        accumulate: the batch is computed in this many parts, one after the other, to save memory.
        seed: of initialisation, data order, noise and everything else.
        label_dropout: chance that a sample is trained without its label (needs model.null_class, or text).
        ema_decay: of the averaged weights; it starts at 0.1 and grows as (1 + n) / (10 + n) over the first steps.
        fsdp: devices over which parameters, optimiser and EMA are divided; the others hold copies.
        max_skipped: so many steps in a row with a non-finite loss or gradient stop the run.
    """

    steps: int = 400_000
    batch_size: int = 256
    accumulate: int = 1
    seed: int = 0
    label_dropout: float = 0.0
    ema_decay: float = 0.9999
    fsdp: int = 1
    max_skipped: int = 10

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "fsdp", "max_skipped"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "must be at least 1")
        require(
            self.batch_size % self.accumulate == 0,
            "train.accumulate",
            self.accumulate,
            f"must divide train.batch_size = {self.batch_size}",
        )
        require(0 <= self.label_dropout < 1, "train.label_dropout", self.label_dropout, "must be in [0, 1)")
        require(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """optimizer.*: AdamW, with clipping by global norm before the step.

    Attributes:
        learning_rate: peak learning rate.
        schedule: "constant", or "cosine" down to 0 at train.steps; either after a linear warm-up.
        warmup_steps: length of the warm-up.
        weight_decay: on matrices only: not on A_log, D, biases, norms, embeddings.
        b1, b2, eps: Adam's.
        clip_norm: largest global norm of the gradient.
    """

    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 1_000
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 2.0

    def __post_init__(self):
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "must be positive")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "must not be negative")
        require(self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm, "must be positive")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """checkpoint.*

    Attributes:
        every: steps between checkpoints; one more is written at the end.
        keep_last: the newest so many are kept.
        keep_every: those at multiples of it are kept for good; 0 keeps none.
    """

    every: int = 5_000
    keep_last: int = 3
    keep_every: int = 0

    def __post_init__(self):
        require(self.every >= 1, "checkpoint.every", self.every, "must be at least 1")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "must be at least 1")
        require(self.keep_every >= 0, "checkpoint.keep_every", self.keep_every, "must not be negative")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """log.*

    Attributes:
        every: steps between lines of metrics.jsonl and points in TensorBoard.
        preview_every: steps between grids of samples from fixed noise; one more is drawn at the end.
        preview_count: samples in such a grid.
        wandb_project: also log to this Weights & Biases project; empty logs to none.
    """

    every: int = 100
    preview_every: int = 5_000
    preview_count: int = 16
    wandb_project: str = ""

    def __post_init__(self):
        for name in ("every", "preview_every", "preview_count"):
            require(getattr(self, name) >= 1, f"log.{name}", getattr(self, name), "must be at least 1")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """sample.*: how previews and `zigma_jax.sample` draw, unless told otherwise.

    Attributes:
        method: "euler", "heun" or "dopri5".
        steps: time points of the fixed-step methods.
        atol, rtol: tolerances of dopri5.
    """

    method: Literal["euler", "heun", "dopri5"] = "dopri5"
    steps: int = 50
    atol: float = 1e-6
    rtol: float = 1e-3

    def __post_init__(self):
        require(self.steps >= 2, "sample.steps", self.steps, "must be at least 2 (two time points, one step)")
        require(self.atol > 0, "sample.atol", self.atol, "must be positive")
        require(self.rtol > 0, "sample.rtol", self.rtol, "must be positive")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run."""

    model: ZigMaConfig = ZigMaConfig(sample_shape=(32, 32, 3))
    data: DataConfig = DataConfig()
    interpolant: Interpolant = Interpolant()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    sample: SampleConfig = SampleConfig()

    def __post_init__(self):
        require(
            not self.train.label_dropout or self.model.null_class or bool(self.model.context_size),
            "train.label_dropout",
            self.train.label_dropout,
            "needs model.null_class = True, the class that stands for no label",
        )


def require(ok: bool, field: str, value: Any, rule: str) -> None:
    """Raises ValueError naming field, value and rule unless `ok`."""
    if not ok:
        raise ValueError(f"config.{field} = {value!r}: {rule}")


def default_config() -> config_dict.ConfigDict:
    """The defaults of every field, to be changed by a config file and by flags.

    The size of the samples is said once: `data.image_size` (a square), or `model.sample_shape`.
    """
    config = config_dict.ConfigDict()
    for section in dataclasses.fields(RunConfig):
        config[section.name] = config_dict.ConfigDict()
        for field in dataclasses.fields(section.type):
            value = getattr(section.default, field.name)
            if value is None:
                value = config_dict.placeholder(_optional_type(field.type))
            config[section.name][field.name] = value
    config.model.sample_shape = config_dict.placeholder(tuple)
    config.data.image_size = config_dict.placeholder(int)
    return config.lock()


def to_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Plain dicts of plain values, for JSON."""
    return dataclasses.asdict(config)


def from_dict(sections: typing.Mapping[str, typing.Mapping[str, Any]]) -> RunConfig:
    """The typed configuration of nested mappings (a ConfigDict, or what `to_dict` wrote).

    Raises:
        ValueError: an unknown section or field, a value of the wrong type, or one that breaks its field's rule.
    """
    known = {section.name: section.type for section in dataclasses.fields(RunConfig)}
    parsed = {}
    for name, fields in _with_sample_shape(sections).items():
        _check_known(name, known, "")
        types_ = {field.name: field.type for field in dataclasses.fields(known[name])}
        values = {}
        for field, value in dict(fields).items():
            _check_known(field, types_, f"{name}.")
            values[field] = _typed(value, types_[field], f"{name}.{field}")
        parsed[name] = known[name](**values)
    return RunConfig(**parsed)


def _with_sample_shape(sections: typing.Mapping[str, typing.Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Fills in whichever of data.image_size and model.sample_shape was left out."""
    sections = {name: dict(fields) for name, fields in dict(sections).items()}
    data, model = sections.setdefault("data", {}), sections.setdefault("model", {})
    size, shape = data.pop("image_size", None), model.pop("sample_shape", None)
    if size is None and shape is None:
        raise ValueError("config.data.image_size = None: give it, or model.sample_shape = (height, width, 3)")
    if shape is None:
        shape = (size, size, 3) if isinstance(size, int) else (*size, 3)
    pixels = tuple(shape)[:2]
    if size is not None and pixels != ((size, size) if isinstance(size, int) else tuple(size)):
        raise ValueError(
            f"config.data.image_size = {size!r}: model.sample_shape = {tuple(shape)} says otherwise; give one of them"
        )
    require(len(shape) == 3 and shape[2] == 3, "model.sample_shape", tuple(shape), "pictures are (height, width, 3)")
    data["image_size"], model["sample_shape"] = pixels, shape
    return sections


def _check_known(name: str, known: typing.Mapping[str, Any], prefix: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(sorted(known))}"
        raise ValueError(f"config.{prefix}{name}: no such field; {hint}")


def _typed(value: Any, wanted: Any, field: str) -> Any:
    """The value as the field's type: lists become tuples, integers floats; anything else must match."""
    if get_origin(wanted) in (typing.Union, types.UnionType):
        options = get_args(wanted)
        if value is None and type(None) in options:
            return None
        for option in options:
            try:
                return _typed(value, option, field)
            except ValueError:
                continue
        return _wrong_type(value, wanted, field)
    if get_origin(wanted) is Literal:
        options = get_args(wanted)
        require(value in options, field, value, f"must be one of {', '.join(map(str, options))}")
        return value
    if get_origin(wanted) is tuple:
        if not isinstance(value, list | tuple):
            return _wrong_type(value, wanted, field)
        return tuple(_typed(item, get_args(wanted)[0], field) for item in value)
    if wanted is float and type(value) is int:
        return float(value)
    return value if type(value) is wanted else _wrong_type(value, wanted, field)


def _wrong_type(value: Any, wanted: Any, field: str) -> typing.NoReturn:
    name = getattr(wanted, "__name__", str(wanted)) if get_origin(wanted) is None else str(wanted)
    raise ValueError(f"config.{field} = {value!r}: must be of type {name}, not {type(value).__name__}")


def _optional_type(wanted: Any) -> type:
    """The type of an optional field beside None: what a flag's text is read as."""
    options = [option for option in get_args(wanted) if option is not type(None)]
    return float if float in options else options[0]

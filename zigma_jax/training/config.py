"""A run's configuration: typed sections, their defaults and their rules."""

import dataclasses
import math
from typing import Any, Literal

from zigma_jax.data.config import DataConfig, LatentConfig, TextConfig
from zigma_jax.errors import ConfigError
from zigma_jax.interpolant import Interpolant, ode, sde, time_points
from zigma_jax.interpolant.guidance import check_guidance
from zigma_jax.metrics import METRICS
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.families import BackboneConfig


def require(ok: bool, field: str, value: Any, rule: str) -> None:
    """Raises ConfigError naming field, value and rule unless `ok`."""
    if not ok:
        raise ConfigError(f"config.{field} = {value!r}: {rule}")


def check_numbers(section: Any, name: str) -> None:
    """Raises ConfigError for numbers of a section that the devices cannot hold: NaN, infinite, or too large.

    Numbers are float32 and int32 there. Every section asks this first: a comparison with NaN is false, so that the
    rules of single fields need not think of it.
    """
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int):
                require(-(2**31) <= number < 2**31, f"{name}.{field.name}", value, "must be below 2^31")
            elif isinstance(number, float):
                finite = math.isfinite(number) and abs(number) < 3.4e38
                require(finite, f"{name}.{field.name}", value, "must be finite, as float32 too")


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
        ema_lengths: of power-function averages that are kept beside it, as shares of the run, 0.05 or 0.1 for instance;
            after training one is chosen by --weights=ema:0.05.
        fsdp: devices over which parameters, optimiser and EMA are divided; the others hold copies.
        seq: devices over which the tokens of each sample are divided; with fsdp, a sample is on seq devices.
        cpu_devices: on a CPU, make so many devices of it, best one a core: they share the batch, and use the cores
            better than one device does. No effect where the environment already says how many.
        max_skipped: so many steps in a row with a non-finite loss or gradient stop the run.
    """

    steps: int = 400_000
    batch_size: int = 256
    accumulate: int = 1
    seed: int = 0
    label_dropout: float = 0.0
    ema_decay: float = 0.9999
    ema_lengths: tuple[float, ...] = ()
    fsdp: int = 1
    seq: int = 1
    cpu_devices: int = 1
    max_skipped: int = 10

    def __post_init__(self):
        check_numbers(self, "train")
        require(self.seed >= 0, "train.seed", self.seed, "must not be negative")
        for name in ("steps", "batch_size", "accumulate", "fsdp", "seq", "cpu_devices", "max_skipped"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "must be at least 1")
        require(
            self.batch_size % self.accumulate == 0,
            "train.accumulate",
            self.accumulate,
            f"must divide train.batch_size = {self.batch_size}",
        )
        require(0 <= self.label_dropout < 1, "train.label_dropout", self.label_dropout, "must be in [0, 1)")
        require(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "must be in [0, 1)")
        fit = all(0.001 <= length <= 0.28 for length in self.ema_lengths)  # beyond, no power function is so long
        different = len({f"{length:g}" for length in self.ema_lengths}) == len(self.ema_lengths)
        rule = "must be different shares of the run in [0.001, 0.28]"
        require(fit and different, "train.ema_lengths", self.ema_lengths, rule)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """optimizer.*: AdamW or Muon, with clipping by global norm before the step.

    Attributes:
        algorithm: "adamw"; or "muon" (Keller Jordan, 2024) for the kernels of the blocks, whose updates are scaled to
            the size of AdamW's (arXiv 2502.16982), and AdamW for all else.
        learning_rate: peak learning rate.
        schedule: "constant", or "cosine" down to 0 at train.steps; either after a linear warm-up.
        warmup_steps: length of the warm-up.
        weight_decay: on matrices only: not on A_log, D, biases, norms, embeddings.
        b1, b2, eps: Adam's.
        clip_norm: largest global norm of the gradient.
    """

    algorithm: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 1_000
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 2.0

    def __post_init__(self):
        check_numbers(self, "optimizer")
        rate = self.learning_rate
        require(0 < rate <= 10, "optimizer.learning_rate", rate, "must be positive, and at most 10")
        require(0 <= self.weight_decay <= 10, "optimizer.weight_decay", self.weight_decay, "must be in [0, 10]")
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "must be in [0, 1)")
        require(0 < self.eps <= 1, "optimizer.eps", self.eps, "must be positive, and at most 1")
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
        check_numbers(self, "checkpoint")
        require(self.every >= 1, "checkpoint.every", self.every, "must be at least 1")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "must be at least 1")
        require(self.keep_every >= 0, "checkpoint.keep_every", self.keep_every, "must not be negative")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """log.*

    Attributes:
        every: steps between lines of metrics.jsonl and points in TensorBoard.
        preview_every: steps between grids of samples from fixed noise; one more is drawn at the end. 0 is never.
        preview_count: samples in such a grid.
        preview_prompts: what these samples are to show, in turn, for a model of text; none: captions of the data set.
        wandb_project: also log to this Weights & Biases project; empty logs to none.
        profile_steps: first and last step of a trace of the devices, for TensorBoard's profiler; empty: none.
    """

    every: int = 100
    preview_every: int = 5_000
    preview_count: int = 16
    preview_prompts: tuple[str, ...] = ()
    wandb_project: str = ""
    profile_steps: tuple[int, ...] = ()

    def __post_init__(self):
        check_numbers(self, "log")
        for name in ("every", "preview_count"):
            require(getattr(self, name) >= 1, f"log.{name}", getattr(self, name), "must be at least 1")
        require(self.preview_every >= 0, "log.preview_every", self.preview_every, "must not be negative; 0 is never")
        steps = self.profile_steps
        sound = not steps or (len(steps) == 2 and 1 <= steps[0] <= steps[1])
        require(sound, "log.profile_steps", steps, "must be a first and a last step, from 1 on, or empty")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """sample.*: how previews and `zigma_jax.sample` draw, unless told otherwise. docs/sampling.md says more.

    Attributes:
        method: a method of `sample_ode`, or "sde_euler" or "sde_heun".
        steps: time points of the methods with fixed steps, or the times themselves.
        shift: of fixed steps: above 1 more of them lie near noise.
        atol, rtol: tolerances of the adaptive methods.
        guidance: scale of classifier-free guidance; 1 is none. Needs model.null_class, or text.
        guidance_interval: times (lo, hi) between which it is in effect; data is at 1.
        guidance_channels: only the first so many channels are guided, 3 in SiT's published results; None: all.
        diffusion, diffusion_norm, last_step, last_step_size: of an SDE, see `sample_sde`; "none" is no last step.
    """

    method: str = "dopri5"
    steps: int | tuple[float, ...] = 50
    shift: float = 1.0
    atol: float = 1e-6
    rtol: float = 1e-3
    guidance: float = 1.0
    guidance_interval: tuple[float, ...] = (0.0, 1.0)
    guidance_channels: int | None = None
    diffusion: str = "sigma"
    diffusion_norm: float = 1.0
    last_step: Literal["mean", "tweedie", "euler", "none"] = "mean"
    last_step_size: float = 0.04

    def __post_init__(self):
        check_numbers(self, "sample")
        known = (*ode.METHODS, *(f"sde_{method}" for method in sde.METHODS))
        require(self.method in known, "sample.method", self.method, f"must be one of {', '.join(known)}")
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            require(0 < value <= 1, f"sample.{name}", value, "must be positive, and at most 1")
        norm = self.diffusion_norm
        require(0 <= norm <= 1000, "sample.diffusion_norm", norm, "must be in [0, 1000]")
        diffusions = ", ".join(sde.DIFFUSIONS)
        require(self.diffusion in sde.DIFFUSIONS, "sample.diffusion", self.diffusion, f"must be one of {diffusions}")
        require(0 < self.last_step_size < 1, "sample.last_step_size", self.last_step_size, "must be in (0, 1)")
        channels = self.guidance_channels
        require(channels is None or channels >= 1, "sample.guidance_channels", channels, "must be at least 1, or None")
        try:
            check_guidance(self.guidance, self.guidance_interval)
            if self.sde_method:
                time_points((0.0, 1.0), self.steps, self.shift)
            else:
                ode.ode_times(self.method, (0.0, 1.0), self.steps, self.shift)
        except ValueError as error:
            raise ConfigError(f"config.sample.{error}") from None

    @property
    def sde_method(self) -> str:
        """The method of `sample_sde`, or nothing for one of `sample_ode`."""
        return self.method.removeprefix("sde_") if self.method.startswith("sde_") else ""


def check_guided(model: BackboneConfig, guidance: float) -> None:
    """Raises ConfigError for guidance of a model that does not know what no condition is."""
    require(
        guidance == 1 or model.null_class or model.context_size > 0,
        "sample.guidance",
        guidance,
        "needs a model that was trained with model.null_class = True and train.label_dropout, or with text; 1 is none",
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """eval.*: how good samples of the averaged weights are, measured while training goes on; docs/evaluation.md.

    Attributes:
        every: steps between evaluations; 0 is never. Each has a checkpoint, and the best one's is kept.
        samples: how many are drawn, as sample.* says, of the same noise each time.
        batch_size: of the drawing, and of the pictures that the network looks at.
        metrics: names of `zigma_jax.metrics.METRICS`; the first decides which checkpoint is the best.
        split: of the data set, to compare with; None: data.split.
        reference: a file for the features of the data set; None: beside its records.
        network, weights: that features come from, and its file: see `zigma_jax.networks.load_network`.
    """

    every: int = 0
    samples: int = 5_000
    batch_size: int = 64
    metrics: tuple[str, ...] = ("fd",)
    split: str | None = None
    reference: str | None = None
    network: str = "effnet"
    weights: str | None = None

    def __post_init__(self):
        check_numbers(self, "eval")
        require(self.every >= 0, "eval.every", self.every, "must not be negative; 0 is never")
        require(self.samples >= 2, "eval.samples", self.samples, "must be at least 2")
        require(self.batch_size >= 1, "eval.batch_size", self.batch_size, "must be at least 1")
        known = bool(self.metrics) and set(self.metrics) <= set(METRICS)
        require(known, "eval.metrics", self.metrics, f"must be some of {', '.join(METRICS)}")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run."""

    model: BackboneConfig = ZigMaConfig(sample_shape=(32, 32, 3))
    data: DataConfig = DataConfig()
    latent: LatentConfig = LatentConfig()
    text: TextConfig = TextConfig()
    interpolant: Interpolant = Interpolant()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    sample: SampleConfig = SampleConfig()
    eval: EvalConfig = EvalConfig()

    def __post_init__(self):
        for field in dataclasses.fields(self):  # those of other rooms check their own rules, and not all of this one
            check_numbers(getattr(self, field.name), field.name)
        require(
            (self.model.context_size > 0) == bool(self.text.encoder),
            "model.context_size",
            self.model.context_size,
            f"is the width of the text encoder's tokens, and 0 without one (text.encoder = {self.text.encoder!r})",
        )
        require(
            not self.log.preview_prompts or self.model.context_size > 0,
            "log.preview_prompts",
            self.log.preview_prompts,
            "is for a model of text (model.context_size, text.encoder)",
        )
        require(
            not self.train.label_dropout or self.model.null_class or self.model.context_size > 0,
            "train.label_dropout",
            self.train.label_dropout,
            "needs model.null_class = True, the class that stands for no label, or text",
        )
        check_guided(self.model, self.sample.guidance)

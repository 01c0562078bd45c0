"""Trains a ZigMa: `python -m zigma_jax.train --config=configs/quickstart.py [--workdir=DIR] [--config.x.y=…]`.

The same command again goes on from the last checkpoint. What a run leaves in its workdir:

    config.json          every field of the configuration, as it was last started
    metrics.jsonl        one line a log point; the same in tensorboard/
    metrics.cut.jsonl    lines of steps that had to be done again: what came after the checkpoint that it went on from
    previews/            grids of samples from fixed noise, NNNNNNN.png by step, newest also as latest.png; of clips
                         .webp, which plays
    compiled/            programs that XLA has compiled, for the next start
    checkpoints/         see zigma_jax/training/checkpoint.py
    evaluations.json     if the configuration asks for evaluations: their numbers, and which step was the best

The first Ctrl-C, SIGTERM or SIGUSR1 finishes the step and saves a checkpoint; the second stops at once.

Exit codes: 0 done; 1 an error, named on the last line; after a signal 128 + its number: 130 Ctrl-C, 143 SIGTERM,
138 SIGUSR1.
"""

import contextlib
import math
import sys
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from zigma_jax import processes
from zigma_jax.data.pipeline import Batch, make_dataset, open_source
from zigma_jax.errors import DivergedError
from zigma_jax.files import AnyPath, as_path
from zigma_jax.models.parameter_table import parameter_table
from zigma_jax.models.sequence import check_tokens
from zigma_jax.processes import from_primary, primary_first
from zigma_jax.programs import (
    DEFINE_config,
    DEFINE_processes,
    exit_with_errors,
    keep_compiled,
    load_config,
    parse_flags,
    set_cpu_devices,
)
from zigma_jax.training.checkpoint import Checkpointer
from zigma_jax.training.conditions import open_conditions, open_encoder
from zigma_jax.training.config import RunConfig
from zigma_jax.training.costs import CompileTime, peak_flops, peak_memory, training_flops
from zigma_jax.training.decoding import Decoder
from zigma_jax.training.dry_run import dry_run
from zigma_jax.training.evaluation import ScheduledEvaluation
from zigma_jax.training.logging import MetricLogger
from zigma_jax.training.parse_config import to_dict
from zigma_jax.training.preview import animation, make_grid, save_animation, save_png
from zigma_jax.training.prompts import Prompts, preview_conditions
from zigma_jax.training.samples import inputs, open_samples
from zigma_jax.training.sampling import make_sampler
from zigma_jax.training.sharding import (
    batch_sharding,
    check_batch,
    from_rows,
    make_mesh,
    replicated,
    rows_of_process,
)
from zigma_jax.training.state import make_optimizer, make_state
from zigma_jax.training.step import make_train_step
from zigma_jax.training.stops import Interrupted, Stops
from zigma_jax.training.trace import Trace
from zigma_jax.training.workdir import check_same_run, owned, write_config

_CONFIG = DEFINE_config()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run lives, a directory or gs://BUCKET/PATH; by default runs/<name of the config>."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Compile the training step, say what it takes, and stop.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "With --dry_run: of devices that are not here, as v5e-8, v5e:2x4 or FILE.txtpb:8."
)
_JOIN = DEFINE_processes()


def train(config: RunConfig, workdir: AnyPath, stops: Stops | None = None) -> bool:
    """Trains to `config.train.steps`, from the last checkpoint in `workdir` if there is one.

    Returns whether it got there: False if a signal stopped it before, with a checkpoint saved. What a second signal
    does is for `stops` to say; by default it does what it did before this was called.
    Raises UserError for what can be mended: the configuration, the data, the workdir, a full disk.
    """
    stops = stops or Stops()
    with owned(workdir):
        run = Run(config, workdir, stops)
        with run.open_checkpoints():
            run.restore()
            if run.step > config.train.steps:
                print(f"{workdir} is at step {run.step} already, beyond train.steps = {config.train.steps}")
                return True
            with run.open_log(), contextlib.closing(run.data), stops:
                return run.train()


class Run:
    """A run from its configuration to its end, in the order of its methods.

    Making it makes all that needs no checkpoint: whatever is wrong with the configuration or the data shows here, and
    nothing of the run is on the disk yet.
    """

    checkpoints: Checkpointer
    logger: MetricLogger

    def __init__(self, config: RunConfig, workdir: AnyPath, stops: Stops):
        cfg = config.train
        self.workdir, self.stops = workdir, stops
        self.mesh = make_mesh(cfg.fsdp, seq=cfg.seq)
        check_tokens(config.model, cfg.seq)
        check_batch(cfg.batch_size, cfg.accumulate, self.mesh)
        stops.on(self.mesh)
        self.rows = rows_of_process(batch_sharding(self.mesh), cfg.batch_size)
        records = primary_first(lambda: open_source(config.data))
        encoder = open_encoder(config, records)
        source, config = open_samples(config, records)
        given, self.config = open_conditions(config, records, encoder)
        config = self.config
        self.dataset = make_dataset(
            config.data,
            global_batch=cfg.batch_size,
            seed=cfg.seed,
            rows=self.rows.tolist(),
            num_classes=config.model.num_classes,
            encoded=source.encoded,
            text=given.texts,
        )
        self.data = iter(self.dataset)
        optimizer = make_optimizer(config.optimizer, cfg.steps)
        graphdef, self.init_state, self.abstract_state = make_state(
            config.model, optimizer, cfg.seed, self.mesh, cfg.ema_lengths
        )
        self.train_step = make_train_step(
            graphdef, optimizer, config, self.mesh, self.abstract_state, source.samples, given.conditions
        )
        self.text_tokens = getattr(given.texts, "length", 0)
        self.shown = preview_conditions(config, given.encoder)
        null = self.shown.null if isinstance(self.shown, Prompts) else None
        self._sampler = make_sampler(graphdef, config.interpolant, config.sample, self.mesh, cfg.seed, null)
        self.decoder = Decoder(config.model.sample_shape, self.mesh, source.autoencoder)
        self.evaluation = None
        if config.eval.every:
            self.evaluation = ScheduledEvaluation(config, workdir, self.draw, self.decoder, given.encoder)
        self.losses: list[Any] = []  # of the steps since the last log point
        self.bad_before = 0  # unreadable samples of all processes, before this start
        self.replaced = np.zeros(len(self.rows), np.int32)  # and since, in each of this process's rows of the batch
        self.compile_time = CompileTime()
        self._everywhere = jax.jit(lambda x: x, out_shardings=replicated(self.mesh))
        self.waited, self.logged = 0.0, time.perf_counter()  # for data since the last log point, and when that was

    def open_checkpoints(self) -> Checkpointer:
        cfg = self.config.checkpoint
        self.checkpoints = Checkpointer(self.workdir / "checkpoints", cfg.keep_last, cfg.keep_every or None)
        return self.checkpoints

    def restore(self) -> None:
        """The state to start from: that of the last checkpoint, or that of step 0."""
        changed: list[str] = []
        from_primary(self.checkpoints.sweep)
        if from_primary(self.checkpoints.steps):
            changed = check_same_run(self.config, self.checkpoints.read_extra()["config"], self.workdir)
            self.state, extra, self.step = self.checkpoints.restore(self.abstract_state)
            self.data.set_state(extra["data"])
            self.losses = list(extra.get("losses", ()))
            self.bad_before = self.dataset.reads.bad
        else:
            self.state, self.step = self.init_state(), 0
        if self.evaluation is not None:
            self.checkpoints.best = self.evaluation.resume(self.step)
        self.changed = changed

    def open_log(self) -> MetricLogger:
        """The log, which begins with what the run is."""
        cfg = self.config
        write_config(cfg, self.workdir)
        self.logger = MetricLogger(
            self.workdir,
            cfg.train.steps,
            cfg.train.batch_size,
            self.step,
            cfg.log.every,
            self._rates(),
            wandb={"project": cfg.log.wandb_project} if cfg.log.wandb_project else None,
            config=to_dict(cfg),
        )
        if self.changed:
            self.logger.print("\n".join(["changed since the workdir was last used:", *self.changed]))
        self.logger.print(parameter_table(self.abstract_state.params))
        info = self.dataset.info
        words = "clips" if info.has_clips else "pictures"
        self.logger.print(
            f"{info.name}: {len(self.dataset):,} {words} ({info.licence})\n"
            f"{self.mesh.size} × {jax.devices()[0].device_kind}, mesh {dict(self.mesh.shape)}; "
            f"{self.workdir}, from step {self.step}"
        )
        return self.logger

    def train(self) -> bool:
        """The loop: while the device runs step N, the host prepares N + 1 and looks at N − 1."""
        cfg, last = self.config, self.config.train.steps
        trace = Trace(self.workdir / "tensorboard", cfg.log.profile_steps)
        previous: dict[str, Any] | None = None
        self._evaluate()  # if the run was killed while it did
        while self.step < last and not self.stops.agreed():
            batch = self._next_batch()
            trace.before(self.step + 1)
            self.state, metrics = self.train_step(self.state, self._to_devices(batch))
            self.step += 1
            trace.after(self.step, metrics)
            self.losses.append(metrics["loss"])
            if self.logger.is_point(self.step):
                metrics |= self._about_input(batch) | self._about_interval()
            self.logger.log(self.step, metrics)
            self._check_skipped(previous, self.step - 1)
            previous = metrics

            if self._due(cfg.checkpoint.every) or (self.evaluation is not None and self.evaluation.due(self.step)):
                self._save()
            self._evaluate()
            if cfg.log.preview_every and (self._due(cfg.log.preview_every) or self.step == last):
                self._preview()
        self._check_skipped(previous, self.step)
        trace.close()
        self._save()
        self.checkpoints.wait()
        if self.step < last and self.stops.received is not None:
            self.logger.print(
                f"{self.stops.received.name}: stopped after step {self.step}, whose checkpoint is "
                f"{self.workdir}/checkpoints/{self.step}; the same command goes on from it"
            )
        return self.step >= last

    # ---- one sample's way in: from the data set to the training step

    def _next_batch(self) -> Batch:
        asked = time.perf_counter()
        batch = next(self.data)
        self.waited += time.perf_counter() - asked
        self.replaced = self.replaced + batch["replaced"]
        return batch

    def _to_devices(self, batch: Batch) -> dict[str, jax.Array]:
        """What the step needs of this process's share of the batch, as global arrays."""
        wanted = inputs(batch, bool(self.config.model.num_classes))
        return from_rows(self.rows, wanted, self.config.train.batch_size, batch_sharding(self.mesh))

    def _about_input(self, batch: Batch) -> dict[str, Any]:
        now = time.perf_counter()
        share, self.waited, self.logged = self.waited / (now - self.logged), 0.0, now
        # Read when the log point is written: which samples they are, to compare runs, and how many were unreadable.
        crc32, bad = partial(_crc32, self._of_all(batch["index"])), partial(_sum, self._of_all(self.replaced))
        return {"input_wait": share, "bad_samples": lambda: self.bad_before + bad(), "batch_crc32": crc32}

    def _of_all(self, mine: np.ndarray) -> jax.Array:
        """Numbers of all rows of the batch, of which each process has those of its own rows."""
        size, sharding = self.config.train.batch_size, batch_sharding(self.mesh)
        return self._everywhere(from_rows(self.rows, mine, size, sharding))

    # ---- what the run says of itself

    def _about_interval(self) -> dict[str, Any]:
        """Of the steps since the last log point. What is on the devices is read when the log point is written."""
        losses, self.losses = self.losses, []
        memory = peak_memory()
        about = {} if memory is None else {"device_memory_peak": memory}
        return about | {"loss": partial(_mean, losses), "compile_seconds": self.compile_time()}

    def _rates(self) -> dict[str, float]:
        """What is logged in proportion to the pictures a second: tokens, operations, and the share of what there is."""
        model, devices = self.config.model, self.mesh.devices.flat
        if not hasattr(model, "num_tokens"):
            return {}
        flops = training_flops(model, self.abstract_state.params, self.text_tokens)
        peak = peak_flops(devices[0].device_kind)
        rates = {"tokens_per_sec": float(model.num_tokens), "flops_per_sec": flops}
        return rates if peak is None else rates | {"mfu": flops / (peak * self.mesh.size)}

    # ---- and out: samples of the averaged weights

    def draw(self, params, indices, labels):
        """As `make_sampler`'s function; raises Interrupted once the run has been asked to stop."""
        if self.stops.agreed():
            raise Interrupted
        return self._sampler(params, indices, labels)

    def _evaluate(self) -> None:
        """Measures samples if it is time to. The step's checkpoint is there: what is killed meanwhile goes on here."""
        if self.evaluation is None or not self.evaluation.due(self.step):
            return
        self.checkpoints.wait()
        with contextlib.suppress(Interrupted), self.logger.tolerate("evaluation", f"evaluation of step {self.step}"):
            self.checkpoints.best = self.evaluation.run(self.step, self.state.ema, self.logger)

    def _preview(self) -> None:
        """Draws the preview's samples and writes them as a grid."""
        with contextlib.suppress(Interrupted), self.logger.tolerate("preview", f"preview of step {self.step}"):
            indices = np.arange(self.config.log.preview_count)
            samples = self.draw(self.state.ema, indices, self.shown(indices))
            captions = self.shown.of(indices) if isinstance(self.shown, Prompts) else None
            pictures, places = self.decoder(samples), [self.workdir / "previews" / f"{self.step:07d}"]
            places.append(self.workdir / "previews" / "latest")
            if pictures.ndim == 5:
                if processes.index() == 0:
                    for place in places:
                        save_animation(place.with_suffix(".webp"), pictures)
                    self.logger.clip(self.step, "samples", animation(pictures, ".gif"))
                return
            grid = make_grid(pictures, captions=captions)
            if processes.index() == 0:
                for place in places:
                    save_png(place.with_suffix(".png"), grid)
            self.logger.image(self.step, "samples", grid)

    # ---- checkpoints

    def _due(self, every: int) -> bool:
        return self.step % every == 0

    def _save(self) -> None:
        """Starts writing a checkpoint; metrics up to its step are on disk before it can be there."""
        self.logger.sync()
        losses = [
            float(loss) for loss in jax.device_get(self.losses)
        ]  # so that the next mean is what it would have been
        reads = {
            "seen": self.step * self.config.train.batch_size,
            "bad": self.bad_before + _sum(self._of_all(self.replaced)),
        }
        data = self.data.get_state() | reads  # of all processes
        extra = {"config": to_dict(self.config), "data": data, "losses": losses}
        self.checkpoints.save(self.step, self.state, extra)

    def _check_skipped(self, metrics: dict[str, Any] | None, step: int) -> None:
        """Stops a run that no longer learns; reads numbers of a step that is done, or about to be."""
        most = self.config.train.max_skipped
        if metrics is not None and (in_a_row := int(jax.device_get(metrics["skipped_in_a_row"]))) >= most:
            raise DivergedError(
                f"loss or gradient was not finite in the last {in_a_row} steps up to step {step} "
                f"(config.train.max_skipped = {most}); parameters are as before them. "
                "Lower optimizer.learning_rate, lengthen optimizer.warmup_steps, or look at the data"
            )


def main(argv: list[str]) -> None:
    stops = Stops(exit_at_second=True)
    with exit_with_errors(argv):
        config = load_config(_CONFIG.value)
        set_cpu_devices(config.train.cpu_devices)
        _JOIN(config=to_dict(config))
        if _DRY_RUN.value or _TOPOLOGY.value:
            dry_run(config, _TOPOLOGY.value)
            return
        workdir = as_path(_WORKDIR.value or f"runs/{_config_name()}")
        keep_compiled(workdir / "compiled")
        finished = train(config, workdir, stops)
    if not finished and stops.received is not None:
        sys.exit(128 + stops.received)
    pictures = f"pictures in {workdir}/previews, " if (workdir / "previews").exists() else ""
    print(
        f"done: {pictures}checkpoints in {workdir}/checkpoints. More samples:\n"
        f"  python -m zigma_jax.sample --source={workdir} --num=64"
    )


def _mean(losses: list[Any]) -> float:
    """Of the losses that are finite: a step with another one had no effect."""
    values = np.array(jax.device_get(losses), np.float64)
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _sum(numbers: jax.Array) -> int:
    return int(np.asarray(jax.device_get(numbers)).sum())


def _crc32(indices: jax.Array) -> int:
    return zlib.crc32(np.asarray(jax.device_get(indices), np.int32).tobytes())


def _config_name() -> str:
    return Path(flags.FLAGS["config"].config_filename).stem  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

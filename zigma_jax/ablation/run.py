"""One run of the ablation: train, and measure on the way."""

import dataclasses
import datetime
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from zigma_jax.ablation.config import AblationConfig, Experiment
from zigma_jax.ablation.distance import MEANING, make_statistics
from zigma_jax.ablation.pictures import Pictures, training_batches
from zigma_jax.data.pictures.pixels import to_uint8
from zigma_jax.errors import DivergedError
from zigma_jax.files import write_atomically
from zigma_jax.interpolant import Interpolant
from zigma_jax.metrics import frechet_distance
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.families import BackboneConfig, build
from zigma_jax.training.array_store import flatten, nest
from zigma_jax.training.config import RunConfig
from zigma_jax.training.sampling import Sampler, batches, make_sampler
from zigma_jax.training.sharding import batch_sharding, replicated
from zigma_jax.training.state import Params, TrainState, initial_state, make_optimizer
from zigma_jax.training.step import make_update

Record = dict[str, Any]
_HELD_OUT_DRAWS, _SAMPLES = 2**31 - 1, 2**31 - 2  # seeds of what all runs share, beyond any run's own
_TIMED = 10  # steps, where equal time is asked for
_AHEAD = 8  # steps handed to the device before the progress bar waits for one


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled parts of every run of one order; the seed is an argument, so they are compiled once.

    Attributes:
        init: seed -> state.
        step: (state, seed, training pictures, rows (b,), mirrored (b,)) -> (state, metrics); the state is donated.
        validate: (parameters, held-out pictures, indices (b,)) -> losses (b,).
        draw: as `make_sampler` says.
        compile_seconds: what compiling took, and running each once.
    """

    init: Callable
    step: Callable
    validate: Callable
    draw: Sampler
    compile_seconds: float


class Runner:
    """Makes the runs of an experiment on a mesh, with the pictures on its devices."""

    def __init__(self, experiment: Experiment, pictures: Pictures, mesh: Mesh, workdir: Path):
        self.experiment, self.mesh, self.about, self.workdir = experiment, mesh, pictures.about, workdir
        self.train, self.held_out = jax.device_put((pictures.train, pictures.held_out), replicated(mesh))
        self.statistics = make_statistics(experiment.ablation.features, mesh, experiment.ablation.batch)
        self.real = self.statistics(pictures.held_out)
        # What perfect samples would have: as many training pictures instead.
        self.real_distance = frechet_distance(self.real, self.statistics(pictures.train[: experiment.ablation.samples]))
        self._programs: dict[str, Programs] = {}

    def run(
        self, scan: str, seed: int, advance: Callable[[int, float | None], None]
    ) -> tuple[Record, UInt8[np.ndarray, "n *size 3"]]:
        """The run's record and the pictures of its last distance. `advance(steps, held-out loss if new)` is told.

        Raises:
            DivergedError: as many steps in a row as `train.max_skipped` were not finite.
        """
        ablation = self.experiment.ablation
        config = self.experiment.run(scan, seed, self.steps(scan))
        programs = self._compiled(scan, config)
        state = programs.init(seed)
        rows = training_batches(len(self.train), config.train.batch_size, seed, config.data.flip)
        curve, times, pictures = [], [], np.zeros((0, *config.model.sample_shape), np.uint8)
        interval = config.train.steps // ablation.evaluations
        training = evaluation = 0.0
        for i in range(1, ablation.evaluations + 1):
            started = time.perf_counter()
            losses = []
            for batch in itertools.islice(rows, interval):
                state, metrics = programs.step(state, seed, self.train, *batch)
                losses.append(metrics["loss"])
                jax.block_until_ready(losses[-_AHEAD:][0])
                advance(1, None)
            jax.block_until_ready(state)
            trained = time.perf_counter()
            _check_learning(state, config, scan)
            training += trained - started
            point = {"step": i * interval, "train_loss": float(np.mean(jax.device_get(losses)))}
            point["loss"] = self._held_out_loss(programs, state.ema, ablation)
            if i % (ablation.evaluations // ablation.distances) == 0:
                pictures = self._draw(programs, state.ema, seed, ablation)
                point["distance"] = frechet_distance(self.real, self.statistics(pictures))
            advance(0, point["loss"])
            curve.append(point)
            times.append(training)
            evaluation += time.perf_counter() - trained
        record = {
            "scan": scan,
            "seed": seed,
            "curve": curve,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "skipped_steps": int(state.skipped),
            "seconds": {
                "compile": programs.compile_seconds,
                "training": training,
                "evaluation": evaluation,
                "at": times,
            },
            "distance": f"FD-{ablation.features}",
            "distance_means": f"Fréchet distance of {MEANING[ablation.features]}",
            "data": self.about,
            "settings": self.experiment.settings(),
            "device": f"{self.mesh.size} × {jax.devices()[0].device_kind}",
            "versions": {"jax": jax.__version__, "flax": flax.__version__, "optax": optax.__version__},
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        return record, pictures

    def steps(self, scan: str) -> int:
        """How many this backbone is trained for; found by timing a few, where the time is what is equal."""
        base, first = self.experiment.base.train.steps, self.experiment.ablation.scans[0]
        if self.experiment.ablation.equal == "steps" or scan == first:
            return base
        return self.experiment.steps_of(self._step_seconds(scan), self._step_seconds(first))

    def _step_seconds(self, scan: str) -> float:
        """The fastest of a few training steps. What was found once is kept beside the records, for runs made later."""
        path = self.workdir / "step_seconds.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if scan not in known:
            config = self.experiment.run(scan, 0)
            programs = make_programs(config, self.mesh, self.experiment.judged_by(config))
            state, rows = programs.init(0), training_batches(len(self.train), config.train.batch_size, 0, False)
            seconds = []
            for batch in itertools.islice(rows, 1 + _TIMED):  # the first one compiles
                started = time.perf_counter()
                state, _ = jax.block_until_ready(programs.step(state, 0, self.train, *batch))
                seconds.append(time.perf_counter() - started)
            known[scan] = min(seconds[1:])
            write_atomically(path, json.dumps(known, indent=1).encode())
        return known[scan]

    def _compiled(self, scan: str, config: RunConfig) -> Programs:
        if scan not in self._programs:
            started = time.perf_counter()
            programs = make_programs(config, self.mesh, self.experiment.judged_by(config))
            state, batch = programs.init(0), next(training_batches(len(self.train), config.train.batch_size, 0, False))
            state, _ = programs.step(state, 0, self.train, *batch)
            indices = np.arange(self.experiment.ablation.batch)
            jax.block_until_ready(programs.validate(state.ema, self.held_out, indices % len(self.held_out)))
            programs.draw(state.ema, indices, None)
            seconds = time.perf_counter() - started
            self._programs[scan] = dataclasses.replace(programs, compile_seconds=seconds)
        return self._programs[scan]

    def _held_out_loss(self, programs: Programs, params: Params, ablation: AblationConfig) -> float:
        """Mean over the held-out pictures, each at a time and with noise that are always the same."""
        count = len(self.held_out)
        parts = [
            np.asarray(programs.validate(params, self.held_out, indices % count))[:wanted]
            for indices, wanted in batches(count, ablation.batch)
        ]
        return float(np.concatenate(parts).astype(np.float64).mean())

    def _draw(self, programs: Programs, params: Params, seed: int, ablation: AblationConfig):
        """`ablation.samples` pictures, from noise that belongs to the seed."""
        first = seed * ablation.samples
        parts = [
            programs.draw(params, first + indices, None)[:wanted]
            for indices, wanted in batches(ablation.samples, ablation.batch)
        ]
        return to_uint8(np.concatenate(parts))


def make_programs(config: RunConfig, mesh: Mesh, judged_by: Interpolant) -> Programs:
    """The jitted parts of a run of `config`, whatever its seed. `judged_by`: the objective of the held-out loss."""
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(config.model, rngs=nnx.Rngs(0))))
    update = make_update(graphdef, optimizer, config)
    everywhere, divided = replicated(mesh), batch_sharding(mesh)

    def pictures_at(pictures: UInt8[Array, "n *size 3"], rows: Int[Array, " b"]) -> Float[Array, "b *size 3"]:
        return jax.lax.with_sharding_constraint(pictures[rows].astype(jnp.float32) / 127.5 - 1, divided)

    def init(seed):
        return initial_state(shared_initial_params(config.model, seed), optimizer)

    def step(state: TrainState, seed, pictures, rows, mirrored):
        image = pictures_at(pictures, rows)
        image = jnp.where(jnp.expand_dims(mirrored, range(1, image.ndim)), jnp.flip(image, -2), image)
        return update(state, {"image": image}, seed)

    def validate(params, pictures, indices):
        model = nnx.merge(graphdef, params)
        draws = jax.random.key(_HELD_OUT_DRAWS)
        keys = jax.vmap(lambda i: jax.random.fold_in(draws, i))(indices)
        return judged_by.loss(lambda x, t: model(x, t), pictures_at(pictures, indices), keys)

    return Programs(
        init=jax.jit(init, out_shardings=everywhere),
        step=jax.jit(step, donate_argnums=0, out_shardings=everywhere),
        validate=jax.jit(validate, out_shardings=everywhere),
        draw=make_sampler(graphdef, config.interpolant, config.sample, mesh, _SAMPLES),
        compile_seconds=0.0,
    )


def shared_initial_params(cfg: BackboneConfig, seed: int | Int[Array, ""]) -> Params:
    """Initial parameters of which every scan order has the same: sweep1's, and sweep2's second direction besides.

    Other backbones share what has the same name and shape by the seed alone.
    """
    if not isinstance(cfg, ZigMaConfig):
        return nnx.to_pure_dict(nnx.state(build(cfg, rngs=nnx.Rngs(jax.random.key(seed))), nnx.Param))

    def params_of(cfg: BackboneConfig) -> dict[str, Any]:
        model = build(cfg, rngs=nnx.Rngs(jax.random.key(seed)))
        return flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))

    return nest(params_of(cfg) | params_of(dataclasses.replace(cfg, scan="sweep1")))


def _check_learning(state: TrainState, config: RunConfig, scan: str) -> None:
    in_a_row = int(state.skipped_in_a_row)
    if in_a_row >= config.train.max_skipped:
        raise DivergedError(
            f"{scan}, seed {config.train.seed}: loss or gradient was not finite in the last {in_a_row} steps up to "
            f"step {int(state.step)} (config.train.max_skipped = {config.train.max_skipped}). "
            "Lower optimizer.learning_rate or lengthen optimizer.warmup_steps"
        )

"""Trains a ZigMa: `python -m zigma_jax.train --config=configs/quickstart.py [--workdir=DIR] [--config.x.y=…]`.

The same command again goes on from the last checkpoint. What a run leaves in its workdir:

    config.json          every field of the configuration
    metrics.jsonl        one line a log point; the same in tensorboard/
    previews/            grids of samples from fixed noise, NNNNNNN.png by step, newest also as latest.png
    checkpoints/         see zigma_jax/training/checkpoint.py
    evaluations.json     if the configuration asks for evaluations: their numbers, and which step was the best

Exit codes: 0 done; 1 an error, named on the last line; 143 stopped by SIGTERM, checkpoint saved.
"""

import contextlib
import json
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jax.sharding import Mesh

from zigma_jax.data.pipeline import Batch, make_dataset
from zigma_jax.files import write_atomically
from zigma_jax.models.parameter_table import parameter_table
from zigma_jax.programs import DEFINE_config, exit_with_errors, load_config, parse_flags, set_cpu_devices
from zigma_jax.training.checkpoint import Checkpointer
from zigma_jax.training.config import RunConfig
from zigma_jax.training.evaluation import ScheduledEvaluation
from zigma_jax.training.logging import MetricLogger
from zigma_jax.training.parse_config import to_dict
from zigma_jax.training.preview import make_grid, save_png
from zigma_jax.training.sampling import choose_labels, make_sampler
from zigma_jax.training.sharding import batch_sharding, check_batch, make_mesh
from zigma_jax.training.state import make_optimizer, make_state
from zigma_jax.training.step import make_train_step

PREEMPTED = 143  # 128 + SIGTERM

_CONFIG = DEFINE_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; by default runs/<name of the config>.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes by jax.distributed.initialize().")


def train(config: RunConfig, workdir: Path) -> bool:
    """Trains to `config.train.steps`, from the last checkpoint in `workdir` if there is one.

    Returns False if SIGTERM stopped it before that, with a checkpoint saved.
    """
    with contextlib.ExitStack() as resources:  # whatever happens, what was begun is written and closed
        return _train(config, workdir, resources)


def _train(config: RunConfig, workdir: Path, resources: contextlib.ExitStack) -> bool:
    cfg = config.train

    # ---- devices, data, model, optimiser
    mesh = make_mesh(cfg.fsdp)
    check_batch(cfg.batch_size, cfg.accumulate, mesh)
    _check_same_run(config, workdir)
    dataset = make_dataset(
        config.data,
        global_batch=cfg.batch_size,
        seed=cfg.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_classes=config.model.num_classes,
    )
    data = iter(dataset)
    optimizer = make_optimizer(config.optimizer, cfg.steps)
    graphdef, init_state, abstract_state = make_state(config.model, optimizer, cfg.seed, mesh)
    train_step = make_train_step(graphdef, optimizer, config, mesh, abstract_state)
    draw = make_sampler(graphdef, config.interpolant, config.sample, mesh, cfg.seed)
    evaluation = ScheduledEvaluation(config, workdir, draw, mesh) if config.eval.every else None

    # ---- from the start, or from the last checkpoint
    checkpoints = resources.enter_context(
        Checkpointer(workdir / "checkpoints", config.checkpoint.keep_last, config.checkpoint.keep_every or None)
    )
    if checkpoints.steps():
        state, extra, start = checkpoints.restore(abstract_state)
        data.set_state(extra["data"])
    else:
        state, start = init_state(), 0
    if evaluation is not None:
        checkpoints.best = evaluation.resume(start)
    if jax.process_index() == 0:
        write_atomically(workdir / "config.json", json.dumps(to_dict(config), indent=1).encode())
    logger = MetricLogger(
        workdir,
        cfg.steps,
        cfg.batch_size,
        start,
        config.log.every,
        wandb={"project": config.log.wandb_project} if config.log.wandb_project else None,
        config=to_dict(config),
    )
    resources.callback(logger.close)
    logger.print(parameter_table(abstract_state.params))
    logger.print(
        f"{dataset.info.name}: {len(dataset):,} pictures ({dataset.info.licence})\n"
        f"{mesh.size} × {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}; {workdir}, from step {start}"
    )

    # ---- the loop: while the device runs step N, the host prepares N + 1 and looks at N − 1
    preempted = _preemption_flag()
    previous: dict[str, Any] | None = None
    waited, since = 0.0, time.perf_counter()
    step = start
    _evaluate(evaluation, state.ema, checkpoints, step, logger)  # if the run was killed while it did
    while step < cfg.steps and not preempted(step):
        asked = time.perf_counter()
        batch = next(data)
        waited += time.perf_counter() - asked
        state, metrics = train_step(state, _to_devices(batch, config, mesh))
        step += 1

        if step % config.log.every == 0:
            now = time.perf_counter()
            metrics |= {"input_wait": waited / (now - since), "bad_samples": dataset.reads.bad}
            metrics |= {"batch_crc32": zlib.crc32(batch["index"].tobytes())}  # which samples: to compare runs
            waited, since = 0.0, now
        logger.log(step, metrics)
        if previous is not None:
            _check_skipped(previous, step - 1, config)
        previous = metrics

        due = evaluation is not None and evaluation.due(step)
        if (due or step % config.checkpoint.every == 0) and step < cfg.steps:
            _save(checkpoints, logger, step, state, data, config)
            _evaluate(evaluation, state.ema, checkpoints, step, logger)
        if step % config.log.preview_every == 0:
            _preview(draw, state.ema, config, workdir, step, logger)
    if previous is not None:
        _check_skipped(previous, step, config)
    _save(checkpoints, logger, step, state, data, config)
    _evaluate(evaluation, state.ema, checkpoints, step, logger)
    return step == cfg.steps


def _to_devices(batch: Batch, config: RunConfig, mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of the batch, as global arrays."""
    wanted = ["image", "label"] if config.model.num_classes else ["image"]
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh), np.asarray(batch[name])) for name in wanted
    }


def _check_skipped(metrics: dict[str, Any], step: int, config: RunConfig) -> None:
    """Stops a run that no longer learns; reads numbers of a step that is done, or about to be."""
    in_a_row = int(jax.device_get(metrics["skipped_in_a_row"]))
    if in_a_row >= config.train.max_skipped:
        raise FloatingPointError(
            f"loss or gradient was not finite in the last {in_a_row} steps up to step {step} "
            f"(config.train.max_skipped = {config.train.max_skipped}); parameters are as before them. "
            "Lower optimizer.learning_rate, lengthen optimizer.warmup_steps, or look at the data"
        )


def _save(checkpoints: Checkpointer, logger: MetricLogger, step: int, state, data, config: RunConfig) -> None:
    """Starts writing a checkpoint; metrics up to its step are on disk before it can be there."""
    logger.flush()
    checkpoints.save(step, state, {"config": to_dict(config), "data": data.get_state()})


def _evaluate(evaluation: ScheduledEvaluation | None, params, checkpoints: Checkpointer, step: int, logger) -> None:
    """Measures samples if it is time to. The step's checkpoint is there: what is killed meanwhile goes on here."""
    if evaluation is not None and evaluation.due(step):
        checkpoints.wait()
        checkpoints.best = evaluation.run(step, params, logger)


def _preview(draw, params, config: RunConfig, workdir: Path, step: int, logger: MetricLogger) -> None:
    """Draws the preview's samples and writes them as a grid."""
    indices = np.arange(config.log.preview_count)
    grid = make_grid(draw(params, indices, choose_labels(config.model, indices)))
    if jax.process_index() == 0:
        save_png(workdir / "previews" / f"{step:07d}.png", grid)
        save_png(workdir / "previews" / "latest.png", grid)
    logger.image(step, "samples", grid)


def _check_same_run(config: RunConfig, workdir: Path) -> None:
    """Refuses a workdir whose checkpoints are of another model; says what else was changed."""
    path = workdir / "config.json"
    if not path.exists():
        return
    free = {"model.remat", "model.unroll", "model.dtype", "model.drop_path_rate", "model.scan_implementation"}
    old, new = (_flat(c) for c in (json.loads(path.read_text()), json.loads(json.dumps(to_dict(config)))))
    changed = {name: (old.get(name), new[name]) for name in new if old.get(name) != new[name]}
    other_model = [name for name in changed if name.split(".")[0] in ("model", "interpolant") and name not in free]
    lines = [f"  {name}: {was!r} in the workdir, {now!r} now" for name, (was, now) in changed.items()]
    if other_model:
        raise ValueError(
            f"--workdir={workdir} holds a run of another model ({', '.join(other_model)} differ); choose another "
            "workdir, or the configuration it was made with:\n" + "\n".join(lines)
        )
    if lines:
        print("changed since the workdir was last used:\n" + "\n".join(lines))


def _flat(config: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{field}": value for section, fields in config.items() for field, value in fields.items()}


def _preemption_flag():
    """A function of the step that says whether to stop: SIGTERM came, on any process."""
    received = []
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, lambda *_: received.append(True))
        return lambda step: bool(received)
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point


def main(argv: list[str]) -> None:
    with exit_with_errors(argv):
        config = load_config(_CONFIG.value)
        set_cpu_devices(config.train.cpu_devices)
        if _DISTRIBUTED.value:
            jax.distributed.initialize()
        workdir = Path(_WORKDIR.value or Path("runs") / _config_name())
        workdir.mkdir(parents=True, exist_ok=True)
        finished = train(config, workdir)
    if not finished:
        print(f"SIGTERM: a checkpoint is in {workdir}/checkpoints; the same command goes on from it.")
        sys.exit(PREEMPTED)
    pictures = f"pictures in {workdir}/previews, " if (workdir / "previews").exists() else ""
    print(
        f"done: {pictures}checkpoints in {workdir}/checkpoints. More samples:\n"
        f"  python -m zigma_jax.sample --source={workdir} --num=64"
    )


def _config_name() -> str:
    return Path(flags.FLAGS["config"].config_filename).stem  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

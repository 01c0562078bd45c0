"""What a run reports: metrics.jsonl, TensorBoard, wandb on request, a progress bar."""

import importlib
import json
import logging
import math
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter
from tqdm import tqdm

from zigma_jax.files import write_atomically
from zigma_jax.training.tolerance import Tolerance

_log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


class MetricLogger:
    """Writes a run's metrics below `workdir`: metrics.jsonl and TensorBoard always, wandb if asked for.

    Call `log` once a step, right after dispatching it. What a log point brings is read only at the next call,
    when the next step is already under way: the device never waits for the log. Only process 0 writes.

    total_steps: for the progress bar; the last step is a log point, too.
    images_per_step: the batch over all processes, for images_per_sec.
    start_step: where the run goes on. Later lines of metrics.jsonl, which a killed run left, are dropped:
        each step is there once. Call `flush` before saving a checkpoint, and none up to its step is missing.
    every: steps between log points.
    wandb: keywords for `wandb.init`, or None. config: handed on to wandb.
    Raises ValueError for `every` below 1; ImportError if wandb is asked for and not installed.
    """

    def __init__(
        self,
        workdir: str | Path,
        total_steps: int,
        images_per_step: int,
        start_step: int = 0,
        every: int = 10,
        wandb: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        progress: bool = True,
    ):
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1")
        self.workdir, self.total_steps, self.every = Path(workdir), total_steps, every
        self.tolerate = Tolerance()
        self.images_per_step = images_per_step
        self._primary = jax.process_index() == 0
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._clock: tuple[int, float] | None = None  # a step, and when it was known to be done
        self._wandb = None
        if not self._primary:
            return
        if wandb is not None:
            self._wandb = _start_wandb(self.workdir, wandb, config)
        _drop_after(self.workdir / METRICS, start_step)
        self._file = open(self.workdir / METRICS, "a", buffering=1)  # noqa: SIM115  a line is written at once
        self._tensorboard = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=start_step + 1)
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            disable=not progress,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # a log file wants few lines
        )

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of `step`, scalars on the device or the host, without waiting for them."""
        if not self._primary:
            return
        self.flush()
        if self._clock is None:
            self._clock = step, time.perf_counter()  # compilation is over now; it is no part of the rate
        self._bar.update(step - self._bar.n)
        if step % self.every == 0 or step == self.total_steps:
            for value in metrics.values():
                if isinstance(value, jax.Array):
                    value.copy_to_host_async()
            self._pending = step, dict(metrics)

    def flush(self) -> None:
        """Writes the log point that is still held back, once its step is done."""
        if self._pending is None or self._clock is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(np.asarray(jax.device_get(value))) for name, value in metrics.items()}
        (last, then), now = self._clock, time.perf_counter()
        rate = (step - last) * self.images_per_step / (now - then) if step > last else math.nan
        self._clock = step, now
        self.write(step, values | {"images_per_sec": rate})
        self._bar.set_postfix({"loss": f"{values.get('loss', math.nan):.4f}", "img/s": f"{rate:.1f}"}, refresh=False)

    def pause(self) -> None:
        """`flush`; the time until the next `log` is no training, and no part of the rate."""
        self.flush()
        self._clock = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes host values of `step` at once. What is not finite is null in metrics.jsonl."""
        if not self._primary:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step} | finite) + "\n")
        for name, value in finite.items():
            if value is not None:
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def image(self, step: int, name: str, grid: UInt8[np.ndarray, "H W 3"]) -> None:
        """Shows a picture (see `preview.make_grid`) in TensorBoard, and in wandb if that is on."""
        if not self._primary:
            return
        self._tensorboard.add_image(name, grid, step, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.log({name: importlib.import_module("wandb").Image(grid)}, step=step)

    def print(self, text: str) -> None:
        """Prints above the progress bar, on process 0."""
        if self._primary:
            tqdm.write(text)

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """`flush`, and closes everything."""
        if not self._primary:
            return
        self.flush()
        self._bar.close()
        self._file.close()
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _drop_after(path: Path, step: int) -> None:
    """Keeps the lines of metrics.jsonl up to `step`, without a last line that a kill tore."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    kept = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            keep = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            _log.warning("%s, line %d is no log point and is dropped: %.80s", path, number, line)
            continue
        kept += [line] if keep else []
    write_atomically(path, "".join(f"{line}\n" for line in kept).encode())


def _start_wandb(workdir: Path, keywords: Mapping[str, Any], config: Mapping[str, Any] | None) -> Any:
    """A wandb run whose id is kept in the workdir, so that a resumed run goes on in the same one."""
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise ImportError("log.wandb: wandb is not installed; pip install 'zigma_jax[wandb]'") from error
    identity = workdir / "wandb_id"
    if not identity.exists():
        write_atomically(identity, uuid.uuid4().hex[:12].encode())
    fixed = {"id": identity.read_text(), "resume": "allow", "dir": str(workdir), "config": dict(config or {})}
    return wandb.init(**(fixed | dict(keywords)))

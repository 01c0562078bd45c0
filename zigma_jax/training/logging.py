"""What a run reports: metrics.jsonl, TensorBoard, wandb on request, a progress bar."""

import contextlib
import importlib
import io
import json
import math
import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from zigma_jax.errors import MissingPackageError
from zigma_jax.files import AnyPath, Mirror, as_path, in_bucket, write_atomically
from zigma_jax.training.metrics_file import MetricsFile, cut_file
from zigma_jax.training.tensorboard import TensorBoard
from zigma_jax.training.tolerance import Tolerance

METRICS = "metrics.jsonl"
_PUSH = 60.0  # seconds between two times that the log is put in a bucket


class MetricLogger:
    """Writes a run's metrics below `workdir`: metrics.jsonl and TensorBoard always, wandb if asked for.

    Call `log` once a step, right after dispatching it. What a log point brings is read only at the next call,
    when the next step is already under way: the device never waits for the log. Only process 0 writes. In a bucket the
    files are put as a whole, once a minute and at every `sync`.

    total_steps: for the progress bar; the last step is a log point, too.
    images_per_step: the batch over all processes, for images_per_sec.
    start_step: where the run goes on. Later lines of metrics.jsonl, which a killed run left, are moved to
        metrics.cut.jsonl: each step is there once. Call `sync` before saving a checkpoint, and none up to its step is
        missing.
    every: steps between log points.
    rates: by name, what is logged as images_per_sec times a number, beside it.
    wandb: keywords for `wandb.init`, or None. config: handed on to wandb.
    Raises ValueError for `every` below 1; MissingPackageError if wandb is asked for and not installed.

    Attributes:
        tolerate: see `Tolerance`. What cannot be written is a warning, and an error after ten in a row; how often
            anything failed is in the log as `failures`.
    """

    def __init__(
        self,
        workdir: str | AnyPath,
        total_steps: int,
        images_per_step: int,
        start_step: int = 0,
        every: int = 10,
        rates: Mapping[str, float] | None = None,
        wandb: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        progress: bool = True,
    ):
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1")
        self.workdir, self.total_steps, self.every = as_path(workdir), total_steps, every
        self.tolerate = Tolerance()
        self.images_per_step, self.rates = images_per_step, dict(rates or {})
        self._primary = jax.process_index() == 0
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._clock: tuple[int, float] | None = None  # a step, and when it was known to be done
        self._wandb = None
        if not self._primary:
            return
        if wandb is not None:
            init = _find_wandb().init
            with self.tolerate("wandb"):
                self._wandb = init(**_wandb_identity(self.workdir), config=dict(config or {}), **wandb)
        self._mirror, self._pushed = Mirror(self.workdir, (METRICS, cut_file(METRICS))), time.monotonic()
        self._file = MetricsFile(self._mirror.local / METRICS, start_step)
        self._tensorboard = TensorBoard(self._mirror.local / "tensorboard", purge_step=start_step + 1)
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            disable=not progress,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # a log file wants few lines
        )

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of `step`, without waiting for them: scalars on the device or the host, or functions that
        return one, to be called when they are written."""
        if not self._primary:
            return
        self.flush()
        if self._clock is None:
            self._clock = step, time.perf_counter()  # compilation is over now; it is no part of the rate
        with contextlib.suppress(OSError):  # the terminal has gone
            self._bar.update(step - self._bar.n)
        if self.is_point(step):
            for value in metrics.values():
                if isinstance(value, jax.Array):
                    value.copy_to_host_async()
            self._pending = step, dict(metrics)

    def is_point(self, step: int) -> bool:
        """Whether the metrics of `step` are written."""
        return step % self.every == 0 or step == self.total_steps

    def flush(self) -> None:
        """Writes the log point that is still held back, once its step is done."""
        if self._pending is None or self._clock is None:
            return
        (step, metrics), self._pending = self._pending, None
        read = {name: value() if callable(value) else value for name, value in metrics.items()}
        values = {name: float(np.asarray(jax.device_get(value))) for name, value in read.items()}
        (last, then), now = self._clock, time.perf_counter()
        self._clock, shown = (step, now), {"loss": f"{values.get('loss', math.nan):.4f}"}
        if step > last:  # otherwise nothing is known of the speed yet
            values["images_per_sec"] = rate = (step - last) * self.images_per_step / (now - then)
            values |= {name: rate * number for name, number in self.rates.items()}
            shown["img/s"] = f"{rate:.1f}"
        self.write(step, values | {"failures": self.tolerate.failures})
        self._bar.set_postfix(shown, refresh=False)

    def sync(self) -> None:
        """`flush`, and waits until metrics.jsonl is on the disk."""
        self.flush()
        if self._primary:
            with self._log_to(METRICS):
                self._file.sync()
                self._push()

    def pause(self) -> None:
        """`flush`; the time until the next `log` is no training, and no part of the rate."""
        self.flush()
        self._clock = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes host values of `step` at once. What is not finite is null in metrics.jsonl."""
        if not self._primary:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._log_to(METRICS):
            self._file.append(json.dumps({"step": step} | finite))
        with self._log_to("tensorboard"):
            self._tensorboard.scalars(step, {name: value for name, value in finite.items() if value is not None})
        if self._wandb is not None:
            with self._log_to("wandb"):
                self._wandb.log(dict(values), step=step)
        if time.monotonic() > self._pushed + _PUSH:
            with self._log_to(METRICS):
                self._push()

    def image(self, step: int, name: str, grid: UInt8[np.ndarray, "H W 3"]) -> None:
        """Shows a picture (see `preview.make_grid`) in TensorBoard, and in wandb if that is on."""
        if not self._primary:
            return
        with self._log_to("tensorboard"):
            self._tensorboard.image(step, name, grid)
        if self._wandb is not None:
            with self._log_to("wandb"):
                self._wandb.log({name: importlib.import_module("wandb").Image(grid)}, step=step)

    def clip(self, step: int, name: str, gif: bytes) -> None:
        """Shows an animated GIF (see `preview.animation`) in TensorBoard, and in wandb if that is on."""
        if not self._primary:
            return
        with self._log_to("tensorboard"):
            self._tensorboard.clip(step, name, gif)
        if self._wandb is not None:
            with self._log_to("wandb"):
                wandb = importlib.import_module("wandb")
                self._wandb.log({name: wandb.Video(io.BytesIO(gif), format="gif")}, step=step)

    def print(self, text: str) -> None:
        """Prints above the progress bar, on process 0."""
        if self._primary:
            with contextlib.suppress(OSError):  # nobody is there to read it
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
        with contextlib.suppress(OSError):
            self._bar.close()
        with self._log_to(METRICS, None):
            self._file.close()
        with self._log_to("tensorboard", None):
            self._tensorboard.close()
        with self._log_to(METRICS, None):
            self._mirror.close()
        if self._wandb is not None:
            with self._log_to("wandb", None):
                self._wandb.finish()

    def _push(self) -> None:
        self._pushed = time.monotonic()
        self._mirror.push()

    def _log_to(self, kind: str, limit: int | None = 10) -> contextlib.AbstractContextManager[None]:
        return self.tolerate(kind, f"writing to {kind}", limit)


def _find_wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise MissingPackageError(
            "log.wandb_project: wandb is not installed; pip install 'zigma_jax[wandb]'"
        ) from error


def _wandb_identity(workdir: AnyPath) -> dict[str, str]:
    """An id that is kept in the workdir, so that a resumed run goes on in the same one."""
    path = workdir / "wandb_id"
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex[:12].encode())
    place = {} if in_bucket(workdir) else {"dir": str(workdir)}
    return {"id": path.read_text(), "resume": "allow"} | place

"""Which checkpoint of a run is the best: its evaluations, kept in evaluations.json of its workdir."""

import json
import math
from collections.abc import Mapping
from typing import Any

from zigma_jax.errors import ConfigError, DataError
from zigma_jax.files import AnyPath, write_atomically
from zigma_jax.processes import from_primary

FILE = "evaluations.json"


class Evaluations:
    """The evaluations of the run in `workdir` up to `start`, from where it goes on: later ones will be made again.

    metric: its value decides; that of the best is the lowest, or the highest if not `lower`. What is not finite is
        null in the file, and never the best.
    """

    def __init__(self, workdir: AnyPath, metric: str, lower: bool, start: int):
        self._path, self._metric, self._lower = workdir / FILE, metric, lower
        entries = from_primary(lambda: _read(self._path)["evaluations"] if self._path.exists() else [])
        self._entries: list[dict[str, Any]] = [entry for entry in entries if entry["step"] <= start]

    def __contains__(self, step: int) -> bool:
        return any(entry["step"] == step for entry in self._entries)

    @property
    def best(self) -> int | None:
        """The step of the best so far, the earliest of equals; None if there is none."""
        scored = [e for e in self._entries if e.get(self._metric) is not None]
        sign = 1 if self._lower else -1
        return min(scored, key=lambda e: sign * e[self._metric])["step"] if scored else None

    def add(self, step: int, values: Mapping[str, float], write: bool = True) -> None:
        """Notes what was measured at `step`, in the file if `write`."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._entries.append({"step": step} | finite)
        if write:
            content = {"metric": self._metric, "best": self.best, "evaluations": self._entries}
            write_atomically(self._path, json.dumps(content, indent=1).encode())


def best_step(workdir: AnyPath) -> int:
    """The step of the best checkpoint. Raises ConfigError if the run was never evaluated."""
    path = workdir / FILE
    step = _read(path)["best"] if path.exists() else None
    if step is None:
        raise ConfigError(
            f"{workdir}: no best checkpoint is known: the run was not evaluated while it trained (eval.every)"
        )
    return step


def _read(path: AnyPath) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        return {"best": content["best"], "evaluations": list(content["evaluations"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it; evaluations from here on start it anew") from error

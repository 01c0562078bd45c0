"""A trace of what the devices do during a few steps, for TensorBoard's profiler."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


class Trace:
    """Traces the steps from `steps[0]` to `steps[1]`, both included, into `directory`; nothing if there are none.

    It costs time and memory while it runs: the run's speed there is not that of other steps.
    """

    def __init__(self, directory: Path, steps: Sequence[int]):
        self._directory, self._steps, self._running = directory, tuple(steps), False

    def before(self, step: int) -> None:
        """To be called before `step` is dispatched."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """To be called after `step` was dispatched; waits for its results if it is the last one of the trace."""
        if self._running and step >= self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

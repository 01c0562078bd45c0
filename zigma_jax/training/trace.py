"""A trace of what the devices do during a few steps, for TensorBoard's profiler."""

from collections.abc import Sequence
from typing import Any

import jax

from zigma_jax.files import AnyPath, Mirror


class Trace:
    """Traces the steps from `steps[0]` to `steps[1]`, both included, into `directory`; nothing if there are none.

    Each process writes what its devices did. It costs time and memory while it runs: the run's speed there is not that
    of other steps.
    """

    def __init__(self, directory: AnyPath, steps: Sequence[int]):
        self._directory, self._steps = directory, tuple(steps)
        self._mirror: Mirror | None = None  # while it runs

    def before(self, step: int) -> None:
        """To be called before `step` is dispatched."""
        if self._steps and step == self._steps[0]:
            self._mirror = Mirror(self._directory)
            jax.profiler.start_trace(str(self._mirror.local))

    def after(self, step: int, results: Any) -> None:
        """To be called after `step` was dispatched; waits for its results if it is the last one of the trace."""
        if self._mirror is not None and step >= self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if self._mirror is not None:
            jax.profiler.stop_trace()
            self._mirror.close()
            self._mirror = None

"""Which frames of a clip are taken: a window of it, drawn anew each time."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from zigma_jax.errors import DataError

_CLOSE = 1e-6  # seconds: times of frames are rounded, and a frame begins at its time

Short = Literal["loop", "refuse"]


@dataclasses.dataclass(frozen=True)
class Window:
    """A run of `frames` frames, `stride` frames apart, or `fps` of them a second; see `DataConfig`."""

    frames: int
    stride: int = 1
    fps: float | None = None
    short: Short = "loop"

    def choose(self, times: Float[np.ndarray, " n"], end: float, where: float) -> Int[np.ndarray, " frames"]:
        """The numbers of the frames to take, of a clip whose frame i is shown from times[i] on.

        times: seconds, ascending, of n frames. end: when the last of them ends.
        where: in [0, 1): 0 takes the first window there is, and numbers near 1 the last one.

        With `fps`, a window begins at any time, and what is shown at each of its times is taken; so frames may repeat,
        and clips of an irregular rate play at the right speed. Without, it begins at any frame.

        Raises:
            DataError: the clip has no frames, or it is too short and `short` is "refuse".
        """
        if not len(times):
            raise DataError("there are no frames in it")
        fits = self.fits(times, end)
        if not fits and self.short == "refuse":
            there = f"{len(times)} frames" if self.fps is None else f"{end - times[0]:.3g} s"
            raise DataError(f"is {there} long, and a window takes {self.needs} (data.short='refuse')")
        steps = np.arange(self.frames)
        if self.fps is None:
            first = int(where * (len(times) - self._reach)) if fits else 0
            return (first + steps * self.stride) % len(times)
        at, duration = steps / self.fps, end - times[0]
        at = at + where * (duration - at[-1]) if fits else at % duration if duration > 0 else at * 0
        return np.maximum(np.searchsorted(times, times[0] + at + _CLOSE, side="right") - 1, 0)

    def fits(self, times: Float[np.ndarray, " n"], end: float) -> bool:
        """Whether a clip, as `choose` takes it, is long enough."""
        if self.fps is None:
            return len(times) > self._reach
        return bool(len(times) and end - times[0] > (self.frames - 1) / self.fps + _CLOSE)

    @property
    def needs(self) -> str:
        """How long a clip has to be, in words."""
        return f"{self._reach + 1} frames" if self.fps is None else f"more than {(self.frames - 1) / self.fps:.3g} s"

    @property
    def _reach(self) -> int:
        """Frames from the first of a window to its last."""
        return (self.frames - 1) * self.stride


def fraction(draw: int) -> float:
    """A number in [0, 1) of 64 random bits."""
    return (draw >> 11) / 2**53

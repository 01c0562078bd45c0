"""Statistics of features that arrive a batch at a time, bit for bit the same however they are split into batches."""

import dataclasses

import numpy as np
from jaxtyping import Float

from zigma_jax.errors import DataError
from zigma_jax.metrics.frechet import Gaussian

CHUNK = 512  # rows added up at a time


class Moments:
    """Mean and covariance of rows, in float64 on the host.

    A float32 sum of squares would lose the digits that a Fréchet distance between similar sets consists of. Rows
    are added in chunks of `CHUNK`, whatever batches they come in, less the first chunk's mean: a mean far from
    zero costs no digits of the covariance.
    """

    def __init__(self) -> None:
        self._sums = _Sums()
        self._waiting: list[np.ndarray] = []

    def add(self, rows: Float[np.ndarray, "b k"]) -> None:
        """Raises ValueError for rows of another dimension than before, or not finite."""
        if self._waiting and rows.shape[1] != self._waiting[0].shape[1]:
            raise DataError(f"features of {rows.shape[1]} dimensions after some of {self._waiting[0].shape[1]}")
        if not np.isfinite(rows).all():
            row = self._sums.count + sum(map(len, self._waiting)) + int(np.argmin(np.isfinite(rows).all(1)))
            raise DataError(f"the features of sample {row} are not finite")
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= CHUNK:
            waiting = np.concatenate(self._waiting)
            whole = len(waiting) // CHUNK * CHUNK
            for first in range(0, whole, CHUNK):
                self._sums = self._sums.plus(waiting[first : first + CHUNK])
            self._waiting = [waiting[whole:]]

    def gaussian(self) -> Gaussian:
        """Of the rows so far; the covariance is the unbiased estimate. Raises ValueError for fewer than two."""
        sums = self._sums.plus(np.concatenate(self._waiting)) if self._waiting else self._sums
        n = sums.count
        if n < 2:
            raise DataError(f"{n} samples: a covariance needs at least 2")
        covariance = (sums.products - np.outer(sums.sum, sums.sum) / n) / (n - 1)
        return Gaussian(np.asarray(sums.shift + sums.sum / n), covariance, n)


@dataclasses.dataclass(frozen=True)
class _Sums:
    """Of x − shift and its products with itself, over `count` rows x."""

    count: int = 0
    shift: Float[np.ndarray, " k"] | float = 0.0
    sum: Float[np.ndarray, " k"] | float = 0.0
    products: Float[np.ndarray, "k k"] | float = 0.0

    def plus(self, rows: Float[np.ndarray, "b k"]) -> "_Sums":
        if not len(rows):
            return self
        shift = self.shift if self.count else rows.mean(0, dtype=np.float64)
        centred = rows - shift
        return _Sums(self.count + len(rows), shift, self.sum + centred.sum(0), self.products + centred.T @ centred)


class Sample:
    """At most `size` rows of all that came, each with the same chance, in the order they came.

    Which ones depends on their number alone: every row draws a number from one stream, and the smallest are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._rng = np.random.RandomState(0)
        self._draws = np.empty(0)
        self._rows: dict[str, list[np.ndarray]] = {}

    def add(self, rows: dict[str, Float[np.ndarray, "b _"]]) -> None:
        for name, values in rows.items():
            self._rows.setdefault(name, []).append(values)
        self._draws = np.append(self._draws, self._rng.random_sample(len(next(iter(rows.values())))))
        if len(self._draws) > 2 * self._size:
            self._drop()

    def rows(self) -> dict[str, Float[np.ndarray, "n _"]]:
        self._drop()
        return {name: np.concatenate(values) for name, values in self._rows.items()}

    def _drop(self) -> None:
        if len(self._draws) > self._size:
            kept = np.sort(np.argsort(self._draws, kind="stable")[: self._size])
            self._draws = self._draws[kept]
            self._rows = {name: [np.concatenate(values)[kept]] for name, values in self._rows.items()}

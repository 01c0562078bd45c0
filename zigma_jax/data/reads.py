"""How many samples were read, and how many of them were damaged."""

import dataclasses

from absl import logging

from zigma_jax.data.sources import SourceInfo
from zigma_jax.errors import UserError

_GRACE = 1000  # samples read before the fraction of unreadable ones is taken at its word
_NAMED = 10  # of the unreadable ones, so many are named in the log


class BadDataError(UserError, RuntimeError):
    """More records were unreadable than `data.max_bad_fraction` allows."""


@dataclasses.dataclass
class Reads:
    """Samples read so far, and those that could not be read; `outcome` says what happened to the latter."""

    max_bad_fraction: float
    outcome: str = "was replaced"
    seen: int = 0
    bad: int = 0

    def add(self, count: int, failures: list[tuple[int, str]], info: SourceInfo) -> None:
        """Counts a batch. Raises BadDataError above the threshold."""
        self.seen += count
        self.bad += len(failures)
        for index, message in failures[: max(0, _NAMED - self.bad + len(failures))]:
            logging.warning("Record %d of %s is unreadable and %s: %s", index, info.name, self.outcome, message)
        if failures and self.bad > self.max_bad_fraction * max(self.seen, _GRACE):
            raise BadDataError(
                f"{self.bad} of the {self.seen} samples read from {info.name}, split {info.split}, were "
                f"unreadable; "
                f"data.max_bad_fraction={self.max_bad_fraction} allows "
                f"{self.max_bad_fraction * max(self.seen, _GRACE):.0f}. "
                f"The last was record {failures[-1][0]} in {info.path}: {failures[-1][1]}"
            )

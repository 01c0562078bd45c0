"""What a run can do without: pictures, logs, evaluations. Their failures are warnings, until there are too many."""

import collections
import contextlib
import logging
from collections.abc import Iterator

from zigma_jax.training.stops import Interrupted

_log = logging.getLogger(__name__)

LIMIT = 3


class Tolerance:
    """`with tolerate("preview"): …` goes on after an exception, with a warning that holds its cause.

    Attributes:
        failures: how many there were, of any kind.
    """

    def __init__(self):
        self.failures = 0
        self._in_a_row: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def __call__(self, kind: str, what: str = "", limit: int | None = LIMIT) -> Iterator[None]:
        """Work of a `kind`, which is counted by itself; `what` names it in the warning.

        Raises RuntimeError, from the cause, when `limit` of a kind in a row have failed; never if it is None.
        """
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            self.failures += 1
            self._in_a_row[kind] += 1
            count, cause = self._in_a_row[kind], f"{type(error).__name__}: {error}"
            if limit is not None and count >= limit:
                raise RuntimeError(f"{what or kind} failed, as the {count - 1} before it: {cause}") from error
            _log.warning("%s failed, and training goes on (%d of %s in a row): %s", what or kind, count, limit, cause)
            _log.debug("traceback", exc_info=True)
        else:
            self._in_a_row[kind] = 0

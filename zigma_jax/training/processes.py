"""What several processes of a run have to agree on: one looks, all get the answer or the error."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from zigma_jax.errors import ConfigError, DataError, UserError
from zigma_jax.training.array_store import CheckpointError

_ERRORS = {error.__name__: error for error in (UserError, ConfigError, DataError, CheckpointError)}


def from_primary(f: Callable[[], Any]) -> Any:
    """What `f` returns (JSON) on process 0, on every process; what it raises there is raised on all of them."""
    if jax.process_count() == 1:
        return f()
    reply: dict[str, Any] = {}
    failure: Exception | None = None
    if jax.process_index() == 0:
        try:
            reply = {"value": f()}
        except Exception as error:  # raised again below, when the others know
            failure, reply = error, {"error": str(error), "type": type(error).__name__}
    text = np.frombuffer(json.dumps(reply).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, size))
    if failure is not None:
        raise failure
    reply = json.loads(np.asarray(text, np.uint8).tobytes())
    if "error" in reply:
        raise _ERRORS.get(reply["type"], RuntimeError)(reply["error"])
    return reply["value"]

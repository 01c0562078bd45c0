"""What the programs share: the --config flag, and errors that end in one line instead of a traceback."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from absl import flags, logging
from ml_collections import config_dict, config_flags

from zigma_jax.data.pipeline import BadDataError
from zigma_jax.training.array_store import CheckpointError
from zigma_jax.training.config import RunConfig
from zigma_jax.training.parse_config import from_dict

EXPECTED = (ValueError, OSError, RuntimeError, FloatingPointError, ImportError, BadDataError, CheckpointError)


def DEFINE_config():  # noqa: N802 - as absl and ml_collections name theirs
    """The --config flag: a file with `get_config()`, whose fields are flags --config.section.field."""
    return config_flags.DEFINE_config_file("config", None, "The run: a file of configs/.", lock_config=True)


def load_config(value: config_dict.ConfigDict | None) -> RunConfig:
    """The typed configuration of the --config flag. Raises ValueError naming field, value and rule."""
    if value is None:
        raise ValueError("--config is missing; for example --config=configs/quickstart.py")
    return from_dict(value)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """`absl.flags.FLAGS`, with one line for a --config.x.y that no config has."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        reason: object = error
        while isinstance(reason, Exception):  # ml_collections raises an error that holds the error
            reason = reason.args[0]
        given = " ".join(argument for argument in argv if argument.startswith("--config."))
        sys.exit(f"error: {given}: the configuration has no field {' '.join(str(reason).split())}")
    except flags.Error as error:
        sys.exit(f"error: {error}")


@contextlib.contextmanager
def exit_with_errors() -> Iterator[None]:
    """Ends the program with code 1 and one line on stderr for errors that say all there is to know.

    Libraries log warnings only, unless `--verbosity` says otherwise; `--verbosity=1` shows the traceback too.
    """
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        yield
    except EXPECTED as error:
        logging.vlog(1, "traceback", exc_info=True)
        sys.exit(f"error: {error}")

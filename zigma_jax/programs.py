"""What the programs share: the --config flag, and errors that end in one line instead of a traceback."""

import ast
import contextlib
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from zigma_jax.errors import ConfigError, UserError
from zigma_jax.models.families import import_family
from zigma_jax.training.config import RunConfig, SampleConfig
from zigma_jax.training.parse_config import check_known_field, describe_fields, from_dict, typed


def DEFINE_config(default: str | None = None):  # noqa: N802 - as absl and ml_collections name theirs
    """The --config flag: a file with `get_config()`, whose fields are flags --config.section.field."""
    return config_flags.DEFINE_config_file("config", default, "The run: a file of configs/.", lock_config=True)


def load_config(value: Any) -> RunConfig:
    """The typed configuration of the --config flag. Raises ConfigError naming field, value and rule."""
    if value is None:
        raise ConfigError("--config is missing; for example --config=configs/quickstart.py")
    import_family(value["model"]["family"])  # one of the user's own: the command line names it, no file does
    return from_dict(value)


def set_cpu_devices(count: int) -> None:
    """Makes `count` devices of the CPU, unless the environment already says how many."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", count)


def DEFINE_sample():  # noqa: N802
    """A flag for every field of `SampleConfig`, by its name.

    Returns a function `(config) -> config` that puts in what was given: numbers, lists with commas, or names.
    """
    given = {
        field: flags.DEFINE_string(field.name, None, f"As sample.{field.name} of a configuration: docs/sampling.md.")
        for field in dataclasses.fields(SampleConfig)
    }

    def changed(config: SampleConfig) -> SampleConfig:
        values = {}
        for field, flag in given.items():
            if flag.value is not None:
                try:
                    value = ast.literal_eval(flag.value)
                except (ValueError, SyntaxError):
                    value = flag.value
                values[field.name] = typed(value, field.type, f"sample.{field.name}")
        return dataclasses.replace(config, **values)

    return changed


def DEFINE_family():  # noqa: N802
    """The --family flag of programs that read weights. Returns a function that gives its value, and imports it."""
    given = flags.DEFINE_string(
        "family", None, "What --source is a model of: sit for SiT's own files; package.module:Class of one of yours."
    )

    def family() -> str | None:
        if given.value is not None:
            import_family(given.value)
        return given.value

    return family


def parse_labels(given: Sequence[str]) -> list[int]:
    """Of a flag --labels. Raises ConfigError for what is no number."""
    try:
        return [int(label) for label in given]
    except ValueError as error:
        raise ConfigError(f"--labels={','.join(given)}: must be whole numbers") from error


def parse_flags(argv: Sequence[str]) -> list[str]:
    """`absl.flags.FLAGS`, with one line for flags that do not exist, and every field of a configuration in --help."""
    if any(argument in ("--help", "-help", "-h", "--helpfull", "--helpshort") for argument in argv):
        print(sys.modules["__main__"].__doc__, flags.FLAGS.main_module_help(), sep="\n")
        if "config" in flags.FLAGS:
            print(f"\nFields of a configuration, each of them a flag:\n{describe_fields()}")
        sys.exit(0)
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError, TypeError) as error:
        given = [match[1] for argument in argv if (match := re.match(r"--?(?:no)?config\.([\w.]+)", argument))]
        for path in given:
            try:
                check_known_field(path)
            except ConfigError as unknown:
                sys.exit(f"error: {unknown}")
        reason: object = error
        while isinstance(reason, Exception):  # ml_collections raises an error that holds the error
            reason = reason.args[0]
        sys.exit(f"error: --config.{' --config.'.join(given)}: {' '.join(str(reason).split())}")
    except flags.Error as error:
        sys.exit(f"error: {error}")


@contextlib.contextmanager
def exit_with_errors(argv: Sequence[str]) -> Iterator[None]:
    """Ends the program with code 1 and one line on stderr for errors that whoever runs it can mend.

    Those are every `UserError`, and what the operating system says of a file. All others are bugs, and keep their
    traceback, as all do with `--verbosity=1`. Ctrl-C that nobody else takes care of ends it with code 130. Libraries
    log warnings only, unless `--verbosity` says otherwise.
    Of `argv`, what `main` is called with, nothing may be left beside the program's name: all arguments are flags.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        yield
    except (UserError, OSError) as error:
        if not isinstance(error, UserError) and error.filename is None:
            raise
        logging.vlog(1, "traceback", exc_info=True)
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("SIGINT: stopped; what was finished before is kept", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)

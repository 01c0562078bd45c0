"""What the programs share: the --config flag, and errors that end in one line instead of a traceback."""

import ast
import contextlib
import dataclasses
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from zigma_jax import processes
from zigma_jax.errors import ConfigError, UserError
from zigma_jax.files import AnyPath, in_bucket
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


def set_cpu_devices(count: int = 1) -> None:
    """Makes `count` devices of the CPU, unless the environment says how many, and lets them wait for each other.

    A device that has come to an exchange with the others waits in a thread of its own. XLA has as many threads as there
    are cores, and ends the program when one has waited for 40 s: several devices a core need more of both.
    """
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if given := re.search(r"xla_force_host_platform_device_count=(\d+)", xla_flags):
        count = int(given[1])
    else:
        jax.config.update("jax_num_cpu_devices", count)
    if count > 1:
        os.environ.setdefault("NPROC", str(max(2 * count, os.cpu_count() or 1)))
        limits = {"warn_stuck": 120, "terminate": 1200}
        flags = {f"--xla_cpu_collective_call_{name}_timeout_seconds": seconds for name, seconds in limits.items()}
        missing = [f"{flag}={seconds}" for flag, seconds in flags.items() if flag not in xla_flags]
        os.environ["XLA_FLAGS"] = " ".join([xla_flags, *missing]).strip()


def keep_compiled(directory: AnyPath) -> None:
    """Keeps what XLA compiles, so that the next start need not; no effect where JAX is told another place already."""
    if jax.config.jax_compilation_cache_dir is None:
        # Kernels are known by what they compute, so that the next process finds them under the same key.
        jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
        jax.config.update("jax_compilation_cache_dir", str(directory))
        if in_bucket(directory):  # XLA's own files beside JAX's can only be in a directory
            jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def DEFINE_processes():  # noqa: N802
    """The flags that say which process of several this is. Returns a function that joins the others, if there are any.

    It is called before anything is asked of the devices, with what all have to have in common, JSON by name, beside
    their flags. Raises as `processes.join` and `processes.check_alike`.
    """
    distributed = flags.DEFINE_bool(
        "distributed", False, "Join the other processes of the run, as SLURM, Open MPI, a TPU pod or GKE names them."
    )
    coordinator = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where nothing else says it.")
    count = flags.DEFINE_integer("processes", None, "How many processes there are.", lower_bound=1)
    index = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
    limit = flags.DEFINE_integer("start_limit", processes.START, "Seconds to wait for the others.", lower_bound=1)
    own = {"process_id", "coordinator", "start_limit"}

    def join(**about: Any) -> None:
        by_hand = (coordinator.value, count.value, index.value)
        if any(value is not None for value in by_hand) and None in by_hand:
            raise ConfigError("--coordinator, --processes and --process_id: give all three, or none with --distributed")
        if count.value is not None and index.value is not None and index.value >= count.value:
            raise ConfigError(f"--process_id={index.value}: must be below --processes={count.value}")
        if distributed.value or coordinator.value:
            processes.join(coordinator.value, count.value, index.value, limit.value)
            names = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.modules["__main__"])]
            given = {f"--{name}": flags.FLAGS[name].value for name in {*names} - own if name != "config"}
            processes.check_alike(given | about)
            if processes.index() > 0:  # what a program prints, it prints once
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115  to the program's end

    return join


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
        _end_all(f"error: {error}", 1)
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        message = "SIGINT: stopped; what was finished before is kept"
        _end_all(message, 128 + signal.SIGINT)
        print(message, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        _end_all("".join(traceback.format_exception(error)), 1)
        raise


def _end_all(message: str, code: int) -> None:
    """Of several processes, ends this one at once with its message, and the others with it; nothing for a single one.

    Python's own end would wait for the others, who wait for this one.
    """
    if processes.count() > 1:
        print(message, file=sys.stderr, flush=True)
        processes.fail(message.strip().splitlines()[-1])
        sys.stdout.flush()
        os._exit(code)

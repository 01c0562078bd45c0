"""Whole models side by side: ours, its mixers and orders, and a transformer of the same size, in one run.

    python -m zigma_jax.bench [--models=zigma,sit] [--tokens=256,1024,4096,16384] [--operations=forward,gradient]
    python -m zigma_jax.bench --account=h100    # compiled for a device that is not here: memory and operations, no time

Every case has as many tokens a batch (--tokens_per_batch; beyond that one sample), and is measured in a process of
its own: seconds are those of the fastest of several runs after the first, memory is the peak of the process while it
runs (on a GPU or TPU the device's). The workdir gets

    results.json    every case: times, memory, device, versions
    table.md        them beside the transformer
    curves.png      time and memory over tokens, and where they cross

The same command again goes on with the cases that are missing. torch_sit, PyTorch's transformer on the CPU, needs
torch: `uv run --group torch python -m zigma_jax.bench --models=zigma,sit,torch_sit`.
"""

import dataclasses
import datetime
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from absl import app, flags
from tqdm import tqdm

from zigma_jax.bench import account
from zigma_jax.bench.cases import MODELS, OPERATIONS, SIZES, Case
from zigma_jax.bench.report import crossing, make_table, save_figure
from zigma_jax.errors import ConfigError
from zigma_jax.files import AnyPath, as_path, write_atomically
from zigma_jax.programs import exit_with_errors, parse_flags

_MODELS = flags.DEFINE_list("models", ["zigma", "sit"], f"What to compare: {MODELS}.")
_SIZE = flags.DEFINE_enum("size", "s", list(SIZES), "Models of about 33, 130 or 458 million parameters.")
_TOKENS = flags.DEFINE_list("tokens", ["256", "1024", "4096", "16384"], "Of a sample; squares.")
_BATCH = flags.DEFINE_integer("tokens_per_batch", 4096, "Tokens of all samples; of longer samples there is one.")
_OPERATIONS = flags.DEFINE_list("operations", ["forward", "gradient"], f"Of {', '.join(OPERATIONS)}.")
_REMAT = flags.DEFINE_list(
    "remat", ["default"], "What the backward pass computes again: default, none, dots, mixer, block."
)
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Default: float32 on a CPU, else bfloat16.")
_ACCOUNT = flags.DEFINE_enum("account", None, list(account.TARGETS), "Compile for this device, and time nothing.")
_MINUTES = flags.DEFINE_float("minutes", 60.0, "No case is begun after, and none runs for longer.")
_WORKDIR = flags.DEFINE_string("workdir", None, "For results; default runs/bench, or runs/bench_DEVICE.")


def wanted_cases() -> list[Case]:
    """What the flags ask for, few tokens first. Raises ConfigError for what cannot be."""
    dtype = _DTYPE.value or ("bfloat16" if _ACCOUNT.value or _has_accelerator() else "float32")
    try:
        tokens = [int(n) for n in _TOKENS.value]
    except ValueError as error:
        raise ConfigError(f"--tokens={','.join(_TOKENS.value)}: must be whole numbers") from error
    cases = []
    for n, operation, model, remat in itertools.product(sorted(tokens), _OPERATIONS.value, _MODELS.value, _REMAT.value):
        if n < 1:
            raise ConfigError(f"--tokens={n}: must be positive")
        if remat == _REMAT.value[0] or operation in ("gradient", "step"):  # it is the backward pass's affair
            cases.append(Case(model, _SIZE.value, n, max(1, _BATCH.value // n), operation, remat, dtype))
    if "torch_sit" in _MODELS.value:
        if find_spec("torch") is None:
            raise ConfigError("--models=torch_sit: needs torch: uv run --group torch python -m zigma_jax.bench …")
        cases = [case for case in cases if case.model != "torch_sit" or case.operation in ("forward", "gradient")]
    return cases


def run_case(case: Case, seconds: float) -> dict[str, Any]:
    """What the process of a case finds, or {"error": why there is nothing}."""
    module, target, variables = "measure", [], {}
    if _ACCOUNT.value:
        module, target, variables = "account", [_ACCOUNT.value], account.environment(_ACCOUNT.value)
    command = [sys.executable, "-m", f"zigma_jax.bench.{module}", *target, json.dumps(dataclasses.asdict(case))]
    try:
        done = subprocess.run(
            command, env=os.environ | variables, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds / 60:.0f} minutes"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    killed = f"killed by signal {-done.returncode}, as when memory runs out" if done.returncode < 0 else ""
    return {"error": killed or (lines[-1][:200] if lines else f"exit code {done.returncode}")}


def about() -> dict[str, Any]:
    """Where and with what it is measured."""
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    if _ACCOUNT.value:
        return {"device": f"{_ACCOUNT.value} (account)", "versions": versions}
    code = "import jax; print(len(jax.devices()), '×', jax.devices()[0].device_kind)"  # not here: it would hold a GPU
    device = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    if device.endswith("cpu"):
        device = f"{os.cpu_count()} cores of {_processor()}"
    return {"device": device, "versions": versions}


def main(argv: list[str]) -> None:
    with exit_with_errors(argv):
        cases, here = wanted_cases(), about()
        name = "bench" + (f"_{_ACCOUNT.value}" if _ACCOUNT.value else "")
        workdir = as_path(_WORKDIR.value or f"runs/{name}")
        records = _read(workdir, here)
        known = {record["key"] for record in records if "error" not in record}
        missing = [case for case in cases if case.key not in known]
        deadline = time.monotonic() + 60 * _MINUTES.value
        interval = 0.1 if sys.stderr.isatty() else 30
        with tqdm(missing, unit="case", dynamic_ncols=True, mininterval=interval) as bar:
            for case in bar:
                if (left := deadline - time.monotonic()) < 0:
                    bar.write(f"--minutes={_MINUTES.value:g} are over; the same command goes on with what is missing")
                    break
                bar.set_description(f"{case.tokens:,} tokens, {case.operation}, {case.model}")
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                record = {"key": case.key, **dataclasses.asdict(case), **run_case(case, left), **here, "measured": now}
                records = [r for r in records if r["key"] != case.key] + [record]
                write_atomically(workdir / "results.json", json.dumps(records, indent=1).encode())
        if not records:
            raise ConfigError(f"--minutes={_MINUTES.value:g}: too few for one case")
        print(write_report(records, workdir, here))


def write_report(records: list[dict[str, Any]], workdir: AnyPath, here: dict[str, Any]) -> str:
    """Writes table.md and, if matplotlib is there, curves.png; returns the table."""
    order = list(dict.fromkeys(_MODELS.value + [record["model"] for record in records]))
    records = sorted(records, key=lambda record: (record["tokens"], order.index(record["model"]), record["remat"]))
    note = f"{here['device']}; {', '.join(f'{k} {v}' for k, v in here['versions'].items())}; {records[0]['dtype']}"
    lines = [make_table(records)]
    if not _ACCOUNT.value:
        for operation, field in itertools.product(_OPERATIONS.value, ("seconds", "peak_bytes")):
            if tokens := crossing(records, order[0], field, operation):
                what = "is faster" if field == "seconds" else "needs less memory"
                lines.append(f"{order[0]} {what} than a transformer, {operation}, from about {tokens:,.0f} tokens on.")
    lines.append(f"\n{note}; {datetime.date.today().isoformat()}.\n")
    table = "\n".join(lines)
    write_atomically(workdir / "table.md", table.encode())
    if find_spec("matplotlib"):
        save_figure(records, workdir / "curves.png", note)
    return table


def _read(workdir: AnyPath, here: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a workdir. Raises ConfigError for those of another device or other versions."""
    path = workdir / "results.json"
    records = json.loads(path.read_text()) if path.exists() else []
    for record in records:
        if other := [name for name in here if record[name] != here[name]]:
            raise ConfigError(
                f"{path}: measured with {other[0]} = {record[other[0]]}, here it is {here[other[0]]}; "
                "figures of one table are of one machine: choose another --workdir"
            )
    return records


def _has_accelerator() -> bool:
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip() != "cpu"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

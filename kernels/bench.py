"""Times the ops of zigma_kernels, every case by every implementation, on the device at hand.

    python kernels/bench.py [--op selective_scan] [--case 1024] [--implementations mosaic xla] [--json bench.json]

Columns, for each case:
- time of the forward pass, and of forward and backward together. On a CPU the best of the repeats, and for the
  latter also the time of its processors, which other work on the machine disturbs less. On an accelerator the
  median of the repeats, each of many calls in a row: the host's part of a call is hidden unless it takes longer.
- of limit: the least time that the device's bandwidth, special functions and instruction issue allow
  (`bench_limits`), as a fraction of the time taken; on NVIDIA GPUs alone.
- memory that forward and backward together need beyond arguments and results, by XLA's account, also as a
  multiple of the input's bytes.
- speed-up: how many times faster, forward and backward, than the slowest that was timed.

`whole_sequence` is the usual scan in JAX, one `lax.associative_scan` over all tokens left to autodiff: for
comparison alone. What is not timed is named with the reason; what fails makes the program fail at its end.
"""

import argparse
import datetime
import functools
import importlib.metadata
import json
import math
import os
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
from bench_limits import conv_work, measure, scan_work
from jax import lax
from zigma_kernels.causal_conv import IMPLEMENTATIONS as CONV_IMPLEMENTATIONS
from zigma_kernels.causal_conv import causal_conv
from zigma_kernels.causal_conv.cases import CASES as CONV_CASES
from zigma_kernels.dispatch import NvidiaKernel, require_nvidia_gpu
from zigma_kernels.selective_scan import IMPLEMENTATIONS as SCAN_IMPLEMENTATIONS
from zigma_kernels.selective_scan import selective_scan
from zigma_kernels.selective_scan.cases import CASES as SCAN_CASES

CPU = jax.default_backend() == "cpu"
LARGEST_ON_CPU = 2 * 4096 * 1536  # elements of the input; beyond it the slower implementations take minutes
LARGEST_REFERENCE = 2**21  # the same on accelerators: there, one small kernel after the other for every token
SECONDS_A_REPEAT = 0.03  # on accelerators, as many calls
ONE_AT_A_TIME = threading.Lock()  # tracing is Python, and not all compilers of kernels bear company
PACKAGES = ("jax", "jaxlib", "numpy", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-triton", "triton")
COLUMNS = {  # format, and whether it is for CPUs (True) or accelerators (False) alone
    "case": ("", None),
    "b x L x d": ("", None),
    "dtype": ("", None),
    "implementation": ("", None),
    "forward, ms": (".1f" if CPU else ".3f", None),
    "forward, of limit": (".0%", False),
    "forward + backward, ms": (".1f" if CPU else ".3f", None),
    "of limit": (".0%", False),
    "of processors, ms": (".1f", True),
    "extra memory, MiB": (".0f", None),
    "x input": (".1f", None),
    "speed-up": (".1f", None),
}


def whole_sequence(u, dt, A, B, C, D, z, dt_bias, *, order):
    if order is not None:
        raise NotImplementedError("raster order only")
    # A dozen arrays of all states in float32 are alive at once.
    needed = 13 * 4 * u.size * A.shape[1]
    if (free := _device_memory()) is not None and needed > free:
        raise NotImplementedError(f"needs about {needed / 2**30:.0f} GiB of {free / 2**30:.0f}")
    u32, dt, B, C, z = (x.astype(jnp.float32) for x in (u, dt, B, C, z))
    delta = jax.nn.softplus(dt + dt_bias)
    decay = jnp.exp(delta[..., None] * A)
    inputs = (delta * u32)[..., None] * B[:, :, None, :]

    def then(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    h = lax.associative_scan(then, (decay, inputs), axis=1)[1]
    y = jnp.einsum("bldn,bln->bld", h, C) + D * u32
    return (y * jax.nn.silu(z)).astype(u.dtype)


def _device_memory() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")


def ops():
    """{op: (cases, {implementation: function}, work)}"""

    def by_each(op, implementations):
        def call(name, *args, **kwargs):
            implementation = implementations[name]
            if isinstance(implementation, NvidiaKernel):
                require_nvidia_gpu(implementation.capability)
            return op(*args, implementation=name, **kwargs)

        return {name: functools.partial(call, name) for name in implementations}

    scans = by_each(selective_scan, SCAN_IMPLEMENTATIONS) | {"whole_sequence": whole_sequence}
    return {
        "selective_scan": (SCAN_CASES, scans, scan_work),
        "causal_conv": (CONV_CASES, by_each(causal_conv, CONV_IMPLEMENTATIONS), conv_work),
    }


def elements(case):
    return case.batch * case.length * case.channels


def compiled(name, function, case):
    """Forward, and forward and backward, compiled for a case; may be called in several threads.

    Raises NotImplementedError for what is too large, besides what the implementation raises.
    """
    if CPU and elements(case) > LARGEST_ON_CPU:
        raise NotImplementedError("too large for a CPU")
    if not CPU and name == "reference" and elements(case) > LARGEST_REFERENCE:
        raise NotImplementedError("too slow at this size")

    def forward(args):
        return function(**args, **case.options)

    def both(args, dy):
        y, vjp = jax.vjp(forward, args)
        return y, vjp(dy)

    with ONE_AT_A_TIME:
        first = jax.jit(forward).lower(case.shapes)
        second = jax.jit(both).lower(case.shapes, first.out_info)
    return first.compile(), second.compile()


@functools.lru_cache(maxsize=1)  # cases that follow one another often differ in their order alone
def drawn(shapes):
    """Arguments by name, on the device, of ((name, shape, dtype), …): steps of about 0.01, decays 1 … n."""

    @jax.jit
    def draw():
        args = {name: jax.random.normal(jax.random.key(i), *rest) for i, (name, *rest) in enumerate(shapes)}
        if "A" in args:
            args["A"] = -jnp.broadcast_to(jnp.arange(1.0, args["A"].shape[1] + 1), args["A"].shape)
            args["dt"] = args["dt"] / 2 - jnp.asarray(4, args["dt"].dtype)
        return args

    return jax.block_until_ready(draw())


def milliseconds(run, repeats):
    """One call's time by the clock, and the processors': the best on a CPU, on accelerators the median."""
    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready(run())
    once = time.perf_counter() - start
    calls = 1 if CPU else min(100, math.ceil(SECONDS_A_REPEAT / once))
    times = []
    for _ in range(repeats + (not CPU)):
        start = time.perf_counter(), time.process_time()
        for _ in range(calls - 1):
            run()
        jax.block_until_ready(run())
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    if not CPU:
        times = times[1:]  # the first brings the clocks up
    pick = min if CPU else statistics.median
    return [1e3 * pick(each) / calls for each in zip(*times, strict=True)]


def row_of(case, name, programs, work, limits, repeats):
    """One row of the table, by column, but for the speed-up."""
    forward, both = programs
    args = drawn(tuple((name, x.shape, x.dtype) for name, x in case.shapes.items()))
    dy = forward(args)
    forward_ms, _ = milliseconds(lambda: forward(args), repeats)
    both_ms, processors_ms = milliseconds(lambda: both(args, dy), repeats)
    memory = both.memory_analysis()
    extra = memory.temp_size_in_bytes if memory else float("nan")
    passes = work(case.shapes)
    found = [case.name, f"{case.batch} x {case.length} x {case.channels}", case.dtype, name]
    found += [forward_ms, limits and limits.milliseconds(passes[0]) / forward_ms]
    found += [both_ms, limits and limits.milliseconds(*passes) / both_ms]
    found += [processors_ms, extra / 2**20, extra / (elements(case) * jnp.dtype(case.dtype).itemsize)]
    return {column: x for column, x in zip(COLUMNS, found, strict=False) if column in shown()}


def shown():
    """The columns for this device."""
    return [column for column, (_, cpu) in COLUMNS.items() if cpu in (None, CPU)]


def line(row):
    cells = ("" if row[column] is None else format(row[column], COLUMNS[column][0]) for column in shown())
    return f"| {' | '.join(cells)} |"


def listed(entries):
    """What was skipped or failed, by reason."""
    reasons = {}
    for entry in entries:
        cases = reasons.setdefault(entry["reason"], {})
        cases.setdefault(f"{entry['op']}, {entry['case']}", []).append(entry["implementation"])
    lines = [
        f"- {reason}: " + "; ".join(f"{case} by {', '.join(names)}" for case, names in cases.items())
        for reason, cases in reasons.items()
    ]
    return "\n".join(["", *lines]) if lines else "nothing"


def device():
    if not CPU:
        return f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown model")
    return f"CPU, {os.cpu_count()} cores, {model}"


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def why_not(error):
    """The reason why something cannot run here; None if it should."""
    if isinstance(error, NotImplementedError | ImportError):
        return str(error)
    return "out of memory" if "RESOURCE_EXHAUSTED" in str(error) else None


def run_op(op, flags, limits, skipped, failed):
    """Times an op's cases, prints a table and returns its rows."""
    cases, functions, work = ops()[op]
    cases = [case for case in cases.values() if case.bench and flags.case in case.name]
    wanted = [name for name in functions if name in (flags.implementations or functions)]
    print(f"\n{op}\n\n| {' | '.join(shown())} |\n{'|---' * len(shown())}|", flush=True)

    def attempt(case, name, do):
        try:
            return do()
        except Exception as error:
            reason = why_not(error)
            where, reason = (skipped, reason) if reason else (failed, f"{type(error).__name__}: {error}")
            where.append({"op": op, "case": case.name, "implementation": name, "reason": reason})

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # compiling takes longer than all the rest
        programs = {
            (case.name, name): pool.submit(
                attempt, case, name, functools.partial(compiled, name, functions[name], case)
            )
            for case in cases
            for name in wanted
        }
    rows = []
    for case in cases:
        of_case = []
        for name in wanted:
            if both := programs.pop((case.name, name)).result():
                row = functools.partial(row_of, case, name, both, work, limits, flags.repeats)
                of_case.append(attempt(case, name, row))
        of_case = [row for row in of_case if row]
        for row in of_case:
            row["speed-up"] = max(row["forward + backward, ms"] for row in of_case) / row["forward + backward, ms"]
            print(line(row), flush=True)
        rows += of_case
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=ops(), help="this op alone")
    parser.add_argument("--case", default="", help="the cases whose names contain this")
    parser.add_argument("--implementations", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    flags = parser.parse_args()
    known = {name for _, functions, _ in ops().values() for name in functions}
    if unknown := set(flags.implementations or ()) - known:
        parser.error(f"--implementations: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}")

    versions = {name: found for name in PACKAGES if (found := version(name))}
    limits = measure(lambda run: milliseconds(run, flags.repeats)[0])
    report = {"device": device(), "versions": versions, "date": datetime.date.today().isoformat()}
    print(f"{report['device']} · {versions} · {report['date']}")
    if limits:
        print(f"{limits.bandwidth / 1e9:.0f} GB/s · {limits.processors} multiprocessors · {limits.clock / 1e9:.2f} GHz")
    skipped, failed = [], []
    results = {op: run_op(op, flags, limits, skipped, failed) for op in ops() if flags.op in (None, op)}
    print(f"\nSkipped: {listed(skipped)}\n\nFailed: {listed(failed)}")
    if flags.json:
        report |= {"limits": vars(limits) if limits else None, "repeats": flags.repeats}
        report |= {"results": results, "skipped": skipped, "failed": failed}
        flags.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

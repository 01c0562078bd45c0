"""Times the ops of zigma_kernels, every case by every implementation, on the device at hand.

    python kernels/bench.py [--op selective_scan] [--case long] [--repeats 5] [--json bench.json]

Prints for each case the time of the forward pass, and of forward and backward together (best of the repeats);
for the latter also the time of the host's processors, which other work on the machine disturbs less, and the
memory that it needs beyond arguments and results, by XLA's account, in MiB and as a multiple of the input's
bytes; and how many times faster than the slowest it is. `whole_sequence` is the usual scan in JAX, one
`lax.associative_scan` over all tokens left to autodiff: for comparison alone.
"""

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax
from zigma_kernels.causal_conv import IMPLEMENTATIONS as CONV_IMPLEMENTATIONS
from zigma_kernels.causal_conv import causal_conv
from zigma_kernels.causal_conv.cases import CASES as CONV_CASES
from zigma_kernels.selective_scan import IMPLEMENTATIONS as SCAN_IMPLEMENTATIONS
from zigma_kernels.selective_scan import selective_scan
from zigma_kernels.selective_scan.cases import CASES as SCAN_CASES

LARGEST_ON_CPU = 2 * 4096 * 1536  # elements of the input; beyond it the slower implementations take minutes
COLUMNS = {
    "case": "",
    "b x L x d": "",
    "dtype": "",
    "implementation": "",
    "forward, ms": ".1f",
    "forward + backward, ms": ".1f",
    "of processors, ms": ".1f",
    "extra memory, MiB": ".0f",
    "x input": ".1f",
    "speed-up": ".1f",
}


def whole_sequence(u, dt, A, B, C, D, z, dt_bias, *, order):
    if order is not None:
        raise NotImplementedError("raster order only")
    u32, dt, B, C, z = (x.astype(jnp.float32) for x in (u, dt, B, C, z))
    delta = jax.nn.softplus(dt + dt_bias)
    decay = jnp.exp(delta[..., None] * A)
    inputs = (delta * u32)[..., None] * B[:, :, None, :]

    def then(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    h = lax.associative_scan(then, (decay, inputs), axis=1)[1]
    y = jnp.einsum("bldn,bln->bld", h, C) + D * u32
    return (y * jax.nn.silu(z)).astype(u.dtype)


def ops():
    """{op: (cases, {implementation: function})}"""
    scans = {name: functools.partial(selective_scan, implementation=name) for name in SCAN_IMPLEMENTATIONS}
    convs = {name: functools.partial(causal_conv, implementation=name) for name in CONV_IMPLEMENTATIONS}
    return {
        "selective_scan": (SCAN_CASES, scans | {"whole_sequence": whole_sequence}),
        "causal_conv": (CONV_CASES, convs),
    }


def compiled(function, case):
    """(run forward, run forward and backward, bytes the latter needs beyond arguments and results)"""
    args = jax.tree.map(jnp.asarray, case.arguments())

    def forward(args):
        return function(**args, **case.options)

    def both(args, dy):
        y, vjp = jax.vjp(forward, args)
        return y, vjp(dy)

    forward_only = jax.jit(forward).lower(args).compile()
    y = forward_only(args)
    together = jax.jit(both).lower(args, y).compile()
    memory = together.memory_analysis()
    extra = memory.temp_size_in_bytes if memory else float("nan")
    return lambda: forward_only(args), lambda: together(args, y), extra


def best(run, repeats):
    """Milliseconds of the quickest repeat, after one to warm up: by the clock, and of the processors."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return [1e3 * min(each) for each in zip(*times[1:], strict=True)]


def rows_of(case, functions, repeats, skipped):
    """One row for each implementation of a case; adds to `skipped` those that do not support it."""
    shape = f"{case.batch} x {case.length} x {case.channels}"
    input_bytes = case.batch * case.length * case.channels * jnp.dtype(case.dtype).itemsize
    rows = []
    for name, function in functions.items():
        try:
            forward, both, extra = compiled(function, case)
        except NotImplementedError as reason:
            skipped.append(f"{case.name} by {name}: {reason}")
            continue
        times = best(forward, repeats)[0], *best(both, repeats)
        rows.append([case.name, shape, case.dtype, name, *times, extra / 2**20, extra / input_bytes])
    slowest = max((row[5] for row in rows), default=0)
    return [dict(zip(COLUMNS, [*row, slowest / row[5]], strict=True)) for row in rows]


def device():
    if jax.default_backend() != "cpu":
        return f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown model")
    return f"CPU, {os.cpu_count()} cores, {model}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=ops(), help="this op alone")
    parser.add_argument("--case", default="", help="the cases whose names contain this")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, of which the best counts")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    flags = parser.parse_args()

    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    report = {"device": device(), "versions": versions, "date": datetime.date.today().isoformat()}
    print(f"{report['device']} · {versions} · {report['date']}")
    results, skipped = {}, []
    for op, (cases, functions) in ops().items():
        if flags.op not in (None, op):
            continue
        print(f"\n{op}\n\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
        results[op] = []
        for case in cases.values():
            if not case.bench or flags.case not in case.name:
                continue
            if jax.default_backend() == "cpu" and case.batch * case.length * case.channels > LARGEST_ON_CPU:
                skipped.append(f"{case.name}: too large for a CPU")
                continue
            for row in rows_of(case, functions, flags.repeats, skipped):
                cells = (format(row[column], spec) for column, spec in COLUMNS.items())
                print(f"| {' | '.join(cells)} |", flush=True)
                results[op].append(row)
    print(f"\nSkipped: {'; '.join(skipped) or 'nothing'}")
    if flags.json:
        report |= {"repeats": flags.repeats, "results": results, "skipped": skipped}
        flags.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

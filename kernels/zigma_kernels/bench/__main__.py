"""Times the ops of zigma_kernels, every case by every implementation, on the device at hand.

    python -m zigma_kernels.bench [--op=selective_scan] [--case=1024] [--implementations mosaic_gpu xla] [--json=FILE]

Columns, for each case:
- time of the forward pass, and of forward and backward together. On a CPU the best of the repeats, and for the
  latter also the time of its processors, which other work on the machine disturbs less. On an accelerator the
  median of the repeats, each of many calls in a row: the host's part of a call is hidden unless it takes longer.
- of limit: the least time that the device's bandwidth, special functions and instruction issue allow
  (`limits`), as a fraction of the time taken; on NVIDIA GPUs alone.
- memory that forward and backward together need beyond arguments and results, by XLA's account, also as a
  multiple of the input's bytes.
- speed-up: how many times faster, forward and backward, than the slowest that was timed.

`whole_sequence` is the usual scan in JAX, one `lax.associative_scan` over all tokens left to autodiff: for
comparison alone. What is not timed is named with the reason; what fails makes the program fail at its end.
"""

import argparse
import datetime
import functools
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zigma_kernels.bench import table, timing
from zigma_kernels.bench.limits import measure


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


def run_op(op, flags, limits, skipped, failed):
    """Times an op's cases, prints a table and returns its rows."""
    cases, functions, work = timing.ops()[op]
    cases = [case for case in cases.values() if case.bench and flags.case in case.name]
    wanted = [name for name in functions if name in (flags.implementations or functions)]
    print(f"\n{op}\n\n{table.header(timing.CPU)}", flush=True)

    def attempt(case, name, do):
        try:
            return do()
        except Exception as error:
            reason = timing.why_not(error)
            where, reason = (skipped, reason) if reason else (failed, f"{type(error).__name__}: {error}")
            where.append({"op": op, "case": case.name, "implementation": name, "reason": reason})

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # compiling takes longer than all the rest
        programs = {
            (case.name, name): pool.submit(
                attempt, case, name, functools.partial(timing.compiled, name, functions[name], case)
            )
            for case in cases
            for name in wanted
        }
    rows = []
    for case in cases:
        of_case = []
        for name in wanted:
            if both := programs.pop((case.name, name)).result():
                row = functools.partial(timing.row_of, case, name, both, work, limits, flags.repeats)
                of_case.append(attempt(case, name, row))
        of_case = table.with_speed_up([row for row in of_case if row])
        for row in of_case:
            print(table.line(row, timing.CPU), flush=True)
        rows += of_case
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=timing.ops(), help="this op alone")
    parser.add_argument("--case", default="", help="the cases whose names contain this")
    parser.add_argument("--implementations", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    flags = parser.parse_args()
    known = {name for _, functions, _ in timing.ops().values() for name in functions}
    if unknown := set(flags.implementations or ()) - known:
        parser.error(f"--implementations: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}")

    limits = measure(lambda run: timing.milliseconds(run, flags.repeats)[0])
    report = timing.about() | {"date": datetime.date.today().isoformat()}
    print(f"{report['device']} · {report['versions']} · {report['date']}")
    if limits:
        print(f"{limits.bandwidth / 1e9:.0f} GB/s · {limits.processors} multiprocessors · {limits.clock / 1e9:.2f} GHz")
    skipped, failed = [], []
    results = {op: run_op(op, flags, limits, skipped, failed) for op in timing.ops() if flags.op in (None, op)}
    print(f"\nSkipped: {listed(skipped)}\n\nFailed: {listed(failed)}")
    if flags.json:
        report |= {"limits": vars(limits) if limits else None, "repeats": flags.repeats}
        report |= {"results": results, "skipped": skipped, "failed": failed}
        flags.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

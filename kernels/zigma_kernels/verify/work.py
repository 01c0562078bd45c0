"""The part of `zigma_kernels.verify` that uses the device, in a process of its own.

    python -m zigma_kernels.verify.work about
    python -m zigma_kernels.verify.work agreement selective_scan xla "plain" "bfloat16" …
    python -m zigma_kernels.verify.work time selective_scan xla "1024 tokens" …

A line of JSON for each case goes to the standard output, after `MARK`. Nothing comes after an error: whatever caused it
may have left the device in no state to go on.
"""

import functools
import json
import sys
from typing import Any

import jax
import numpy as np

from zigma_kernels import agreement
from zigma_kernels.bench import limits, timing
from zigma_kernels.dispatch import nvidia_capability
from zigma_kernels.verify.tasks import MARK, OFFICIAL, cases_of

REPEATS = 5


def about() -> dict[str, Any]:
    """The machine, as far as JAX knows it."""
    kind = jax.devices()[0].device_kind
    return timing.about() | {"platform": jax.default_backend(), "capability": nvidia_capability(), "kind": kind}


def agree(op: str, implementation: str, case: Any) -> dict[str, Any]:
    """Errors of all outputs and gradients against float64, and whether two runs give the same bits."""
    run = agreement.outputs_and_gradients(op, case, implementation, case.arguments())
    first, second = run(), run()
    errors = agreement.errors(first, agreement.truth(op, case))
    allowed, same = agreement.tolerance(case), agreement.same_bits(first, second)
    right = same and all(error <= allowed for error in errors.values())
    # JSON knows no infinity.
    told = {name: error if np.isfinite(error) else "not finite" for name, error in errors.items()}
    return {"right": right, "same_bits": same, "tolerance": allowed, "errors": told, "dtype": case.dtype}


def time_case(op: str, implementation: str, case: Any) -> dict[str, Any]:
    """A row of the bench's table."""
    if implementation == OFFICIAL:
        from zigma_kernels.verify import official

        return {"row": official.row(case, REPEATS)}
    _, functions, work = timing.ops()[op]
    programs = timing.compiled(implementation, functions[implementation], case)
    return {"row": timing.row_of(case, implementation, programs, work, _bounds(), REPEATS)}


@functools.cache
def _bounds() -> limits.Device | None:
    return limits.measure(lambda run: timing.milliseconds(run, REPEATS)[0])


def main(arguments: list[str]) -> None:
    if arguments == ["about"]:
        print(MARK + json.dumps(about()), flush=True)
        return
    kind, op, implementation, *names = arguments
    do = {"agreement": agree, "time": time_case}[kind]
    cases = cases_of(op)
    for name in names:
        try:
            result = do(op, implementation, cases[name])
        except Exception as error:
            lines = str(error).splitlines() or [""]
            reason = timing.why_not(error)
            result = {"skipped": reason} if reason else {"error": f"{type(error).__name__}: {lines[0][:300]}"}
        print(MARK + json.dumps(result), flush=True)
        if "error" in result:
            return


if __name__ == "__main__":
    main(sys.argv[1:])

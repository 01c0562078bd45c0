"""Whether an implementation of an op is right: its values and all its gradients, held against another's."""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

type Arrays = dict[str, np.ndarray]


def outputs_and_gradients(
    op: str, case: Any, implementation: str, arguments: Mapping[str, Any]
) -> Callable[[], Arrays]:
    """A function that runs a case, compiled once, and returns the outputs and the gradients by name.

    Args:
        op: "selective_scan" or "causal_conv".
        case: one of the op's `cases`; it gives the visiting order and what else is no array.
        implementation: one of the op's, by name.
        arguments: the arrays by name, in the dtypes that they are to have.

    Of outputs in bfloat16 float32 is returned. The gradients are those of fixed random weightings of the outputs.
    """
    call = getattr(importlib.import_module(f"zigma_kernels.{op}"), op)
    outputs = ("y", "final_state") if op == "selective_scan" else ("y",)
    options = case.options | ({"return_final_state": True} if op == "selective_scan" else {})

    def run(arguments):
        found = call(**arguments, **options, implementation=implementation)
        return found if isinstance(found, tuple) else (found,)

    @jax.jit
    def both(arguments):
        found, vjp = jax.vjp(run, arguments)
        rng = np.random.default_rng(1)
        (gradients,) = vjp(tuple(jnp.asarray(rng.standard_normal(x.shape), x.dtype) for x in found))
        return dict(zip(outputs, found, strict=True)) | {f"d{name}": x for name, x in gradients.items()}

    arguments = jax.tree.map(jnp.asarray, dict(arguments))

    def arrays():
        found = {name: np.asarray(x) for name, x in both(arguments).items()}
        return {name: x if x.dtype == np.float64 else x.astype(np.float32) for name, x in found.items()}

    return arrays


@functools.cache
def truth(op: str, case: Any) -> Arrays:
    """What the reference gives in float64 for a case's arguments, as rounded to their dtypes."""
    with jax.enable_x64(True):
        arguments = {name: x.astype(np.float64) for name, x in case.arguments().items()}
        return outputs_and_gradients(op, case, "reference", arguments)()


def errors(found: Arrays, expected: Arrays) -> dict[str, float]:
    """The largest error of each array, as a fraction of the largest entry expected of it."""

    def error(got, want):
        if not np.isfinite(got).all():
            return float("inf")
        distance = np.abs(got.astype(np.float64) - want).max(initial=0.0)
        return float(distance / max(np.abs(want).max(initial=0.0), 1e-30))

    return {name: error(found[name], want) for name, want in expected.items()}


def tolerance(case: Any) -> float:
    """What rounding may amount to in a case.

    Sums are float32, and their rounding adds up like a random walk over the tokens. In bfloat16 that is less than the
    rounding of what goes out, and of the states that a kernel keeps.
    """
    if case.dtype == "float32":
        return 16 * float(jnp.finfo(jnp.float32).eps) * max(case.length, 16) ** 0.5
    return 4 * float(jnp.finfo(case.dtype).eps)


def same_bits(first: Arrays, second: Arrays) -> bool:
    """Whether two runs gave the same, to the last bit."""
    return all(first[name].tobytes() == second[name].tobytes() for name in first)

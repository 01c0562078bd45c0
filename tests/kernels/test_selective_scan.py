"""The selective scan: every implementation against the reference in float64, and how it composes with JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zigma_kernels.selective_scan import IMPLEMENTATIONS, selective_scan, xla, xla_chunks
from zigma_kernels.selective_scan.cases import CASES, Case

# "xla" is token by token on the CPU that runs these tests; "xla_chunks" is what it is elsewhere.
NAMES = ("xla", "xla_chunks")
TESTED = [case for case in CASES.values() if not case.bench]


@pytest.fixture(autouse=True)
def _chunks_by_name(monkeypatch):
    scan = xla.with_adjoint(xla_chunks.forward, xla_chunks.backward)
    monkeypatch.setitem(IMPLEMENTATIONS, "xla_chunks", functools.partial(xla.selective_scan, scan=scan))


def outputs_and_gradients(args, implementation, order=None):
    """(y, final state) and the gradients, by argument, of fixed random weightings of both."""

    def run(args):
        return selective_scan(**args, order=order, return_final_state=True, implementation=implementation)

    @jax.jit
    def both(args):
        outputs, vjp = jax.vjp(run, args)
        rng = np.random.default_rng(1)
        return outputs, vjp(jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), outputs))[0]

    (y, state), gradients = both(jax.tree.map(jnp.asarray, args))
    return {"y": y, "final_state": state} | {f"d{name}": g for name, g in gradients.items()}


@functools.cache
def truth(case: Case):
    with jax.enable_x64(True):
        found = outputs_and_gradients(case.arguments("float64"), "reference", case.order)
        return jax.tree.map(np.asarray, found)


def assert_close(found, expected, tolerance):
    """Each array's largest error within `tolerance` of the largest entry expected of it."""
    for name, want in expected.items():
        got = np.asarray(found[name], np.float64)
        assert np.isfinite(got).all(), name
        error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
        assert error <= tolerance, f"{name}: relative error {error:.2e}, tolerance {tolerance:.2e}"


def tolerance(dtype, length):
    """Rounding errors of a recurrence add up like a random walk over its tokens."""
    return 16 * float(jnp.finfo(dtype).eps) * max(length, 16) ** 0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.name)
def test_values_and_gradients(case, name):
    args = case.arguments()
    found = outputs_and_gradients(args, name, case.order)
    assert found["y"].dtype == args["u"].dtype
    assert found["final_state"].dtype == jnp.float32
    for argument, x in args.items():
        assert found[f"d{argument}"].dtype == x.dtype, argument
    assert_close(found, truth(case), tolerance(case.dtype, case.length))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["full", "steps from 1e-6 to 50", "frames of a video"])
def test_float64(case, name):
    case = CASES[case]
    with jax.enable_x64(True):
        found = outputs_and_gradients(case.arguments("float64"), name, case.order)
        assert {x.dtype.name for x in found.values()} == {"float64"}
        assert_close(found, truth(case), tolerance("float64", case.length))


@pytest.mark.parametrize("length", [2, 15, 17, 100, 1023, 4097])
def test_every_length(length):
    case = Case("", 1, length, 2, 2, delta=(1e-6, 50.0), initial_state=True)
    for name in NAMES:
        found = outputs_and_gradients(case.arguments(), name)
        assert_close(found, truth(case), tolerance("float32", length))

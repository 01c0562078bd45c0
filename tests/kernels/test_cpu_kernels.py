"""The kernels for CPUs: at odd sizes, on any number of threads, on lesser processors, and where there is no compiler.

`test_selective_scan` and `test_causal_conv` hold them to the reference as they do every implementation.
"""

import hashlib
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_selective_scan import assert_close, outputs_and_gradients, tolerance, truth
from zigma_kernels import GridPath, causal_conv, explain, selective_scan
from zigma_kernels.cpu import library
from zigma_kernels.selective_scan.cases import CASES, Case

ODD = [  # lengths about a chunk, channels about a vector and a block, states about a pair
    Case("", 1, 1, 1, 1),
    Case("", 2, 2, 17, 2, initial_state=True),
    Case("", 1, 64, 64, 16, order=GridPath.hilbert((8, 8))),
    Case("", 3, 65, 65, 3, order=GridPath.random((5, 13), 0), initial_state=True),
    Case("", 1, 130, 130, 5, gate=False, order=GridPath.zigzag((10, 13), (1, 0), (True, False))),
    Case("", 2, 60, 33, 17, dtype="bfloat16", order=GridPath.zigzag((3, 4, 5), (1, 2)), initial_state=True),
]


@pytest.mark.parametrize("case", ODD, ids=lambda case: f"{case.batch}x{case.length}x{case.channels}x{case.states}")
def test_odd_sizes(case):
    found = outputs_and_gradients(case.arguments(), "cpu", case.order)
    assert_close(found, truth(case), tolerance(case.dtype, case.length))


def test_nan_stays_where_the_recurrence_takes_it():
    case = Case("", 2, 40, 20, 3, order=GridPath.zigzag((5, 8)))
    args = case.arguments()
    args["u"][1, 7, 4] = args["dt"][0, 3, 19] = np.nan
    args["B"][1, 30, 2] = np.inf
    found, expected = (outputs_and_gradients(args, name, case.order) for name in ("cpu", "xla"))
    for name, want in expected.items():
        np.testing.assert_array_equal(np.isfinite(found[name]), np.isfinite(want), err_msg=name)


def results() -> str:
    """A digest of the kernels' results, of every bit."""
    case = Case("", 3, 100, 200, 16, order=GridPath.zigzag((10, 10), (1, 0)))
    found = outputs_and_gradients(case.arguments(), "cpu", case.order)

    def conv(x, weight):
        return causal_conv(x, weight, order=case.order, implementation="cpu")

    y, vjp = jax.vjp(conv, jnp.asarray(case.arguments()["u"]), jnp.linspace(-1, 1, 800).reshape(4, 200))
    arrays = [*jax.tree.leaves(found), y, *vjp(y)]
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in arrays)).hexdigest()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are as many as processors, told on Linux")
def test_the_same_bits_on_any_number_of_threads():
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    program += "import test_cpu_kernels; print(test_cpu_kernels.results())"
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    child = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert child.stdout.strip() == results(), child.stderr


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """The library as in a process that has not used it yet, in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()
    yield tmp_path
    forget()


def forget():
    library._load.cache_clear()
    library.digest.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-mavx2", "-mfma"), ("-msse2",)])
@pytest.mark.skipif(library.platform.machine() != "x86_64", reason="flags of x86")
def test_on_lesser_processors(fresh, monkeypatch, flags):
    monkeypatch.setattr(library, "_NATIVE", flags)
    for case in (ODD[3], ODD[5], CASES["steps from 1e-6 to 50"], CASES["long memory"]):
        found = outputs_and_gradients(case.arguments(), "cpu", case.order)
        assert_close(found, truth(case), tolerance(case.dtype, case.length))
    args = ODD[3].arguments()
    args["u"][1, 7, 4] = np.nan
    found, expected = (outputs_and_gradients(args, name, ODD[3].order) for name in ("cpu", "xla"))
    for name, want in expected.items():
        np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(want), err_msg=name)
    assert len(list(fresh.glob("zigma_jax/kernels/*.so"))) == 1


def chosen():
    x = jax.ShapeDtypeStruct((1, 4, 2), "float32")
    return explain(selective_scan, x, x, jax.ShapeDtypeStruct((2, 2), "float32"), x, x)


def test_without_a_compiler(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", str(fresh / "no-such-compiler"))
    with caplog.at_level(logging.INFO, "zigma_kernels"):
        found, again = chosen(), chosen()
    assert found["xla"] == "chosen"
    assert found == again
    assert "no-such-compiler" in found["cpu"]
    assert caplog.text.count("slower code is used") == 1
    with pytest.raises(NotImplementedError, match="no-such-compiler"):
        causal_conv(jnp.ones((1, 4, 2)), jnp.ones((4, 2)), implementation="cpu")
    monkeypatch.setenv("ZIGMA_CPU_KERNELS", "require")
    with pytest.raises(RuntimeError, match=r"ZIGMA_CPU_KERNELS=require, but .*no-such-compiler"):
        chosen()


def test_turned_off(monkeypatch):
    monkeypatch.setenv("ZIGMA_CPU_KERNELS", "off")
    assert chosen()["cpu"] == "turned off by ZIGMA_CPU_KERNELS=off"
    monkeypatch.setenv("ZIGMA_CPU_KERNELS", "fast")
    with pytest.raises(ValueError, match=r"ZIGMA_CPU_KERNELS=fast: must be off, require, or not set"):
        chosen()

"""The selective scan in Triton: interpreted on the CPU, lowered for CUDA, and run where there is an NVIDIA GPU."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_selective_scan import assert_close, gradients, lowered, outputs_and_gradients, tolerance, truth
from zigma_kernels import GridPath, explain, selective_scan
from zigma_kernels.selective_scan.cases import CASES, Case

TESTED = [name for name, case in CASES.items() if not case.bench]
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")
needs_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")


def supported() -> str:
    """Why calls cannot be lowered here; empty if they can."""
    try:
        jax.eval_shape(lambda args: selective_scan(**args, implementation="triton"), CASES["plain"].shapes)
    except NotImplementedError as reason:
        return str(reason)
    return ""


needs_jax_triton = pytest.mark.skipif(bool(supported()), reason=supported())


@needs_triton
def test_interpreted():
    """The kernels' own code on the CPU, values and all gradients: plain, bfloat16, several blocks, segments."""
    script = Path(__file__).with_name("interpret_triton.py")
    cases = "plain", "bfloat16", "two blocks of channels", "segments in raster order"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, script, *cases], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert all(f"{name}: tolerance" in run.stdout for name in cases)


@needs_jax_triton
@pytest.mark.parametrize("name", CASES)
def test_every_case_lowers(name):
    case = CASES[name]
    program = lowered(gradients("triton", case.order), case.shapes)
    assert len(re.findall(r"custom_call @triton_kernel_call", program)) == 2
    assert "gather" not in program  # the order is followed inside the kernels


@needs_jax_triton
@pytest.mark.parametrize("states", [1, 4, 8, 16, 32])
def test_states_and_types_lower(states):
    for dtype in ("float32", "bfloat16", "float16"):
        case = Case("", 1, 40, 48, states, dtype=dtype)
        assert "triton_kernel_call" in lowered(gradients("triton"), case.shapes)


@needs_jax_triton
@pytest.mark.parametrize(("length", "channels"), [(1, 40), (40, 1), (1, 1)])
def test_sizes_of_one_lower(length, channels):
    args = Case("", 1, length, channels, 1).shapes
    assert "triton_kernel_call" in lowered(gradients("triton"), args)


@needs_jax_triton
def test_a_traced_order_lowers():
    args, order = CASES["plain"].shapes, jax.ShapeDtypeStruct((33,), "int32")
    assert "triton_kernel_call" in lowered(lambda args, order: gradients("triton", order)(args), args, order)


@needs_jax_triton
def test_vmap_remat_and_shard_map_lower():
    args = CASES["zigzag by columns"].shapes
    order = CASES["zigzag by columns"].order

    def loss(args):
        return jnp.sum(selective_scan(**args, order=order, implementation="triton"))

    pairs = args | {"A": jax.ShapeDtypeStruct((2, *args["A"].shape), "float32")}
    axes = {key: 0 if key == "A" else None for key in args}
    assert "triton_kernel_call" in lowered(jax.vmap(jax.grad(jax.checkpoint(loss)), in_axes=(axes,)), pairs)

    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = {key: P("data", None, "model") for key in ("u", "dt", "z")}
    specs |= {key: P("data") for key in ("B", "C")} | {key: P("model") for key in ("A", "D", "dt_bias")}
    specs["initial_state"] = P("data", "model")
    scan = jax.shard_map(
        lambda args: selective_scan(**args, order=order, implementation="triton"),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=specs["u"],
    )
    program = lowered(jax.grad(lambda args: jnp.sum(scan(args))), args)
    assert "triton_kernel_call" in program
    assert "all_reduce" in program  # parameters' gradients, summed over the shards


@needs_jax_triton
def test_float64_is_refused():
    with jax.enable_x64(True), pytest.raises(NotImplementedError, match="not float64"):
        selective_scan(**jax.tree.map(jnp.asarray, CASES["plain"].arguments("float64")), implementation="triton")


@pytest.mark.parametrize(
    ("length", "channels", "states"), [(2**21, 2**10, 1), (2**24, 1, 200), (1, 2**24, 128), (1, 2**16, 256)]
)
def test_sizes_beyond_32_bits_or_the_grid_are_refused(length, channels, states):
    args = Case("", 1, length, channels, states).shapes
    with pytest.raises(NotImplementedError, match="2\\^"):
        jax.eval_shape(lambda args: selective_scan(**args, implementation="triton"), args)


def test_refused_without_jax_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_triton", None)
    with pytest.raises(NotImplementedError, match=r"needs jax-triton .*zigma_jax\[cuda13,triton\]"):
        selective_scan(**jax.tree.map(jnp.asarray, CASES["plain"].arguments()), implementation="triton")


def test_it_runs_only_when_asked_for():
    """It has not been timed on a device."""
    found = explain(selective_scan, **CASES["plain"].shapes)
    assert found["triton"] == "ranks below the one chosen"


@needs_gpu
@pytest.mark.parametrize("name", TESTED)
def test_values_and_gradients(name):
    case = CASES[name]
    found = outputs_and_gradients(case.arguments(), "triton", case.order)
    assert_close(found, truth(case), tolerance(case.dtype, case.length))


@needs_gpu
@pytest.mark.parametrize("states", [4, 8, 16, 32])
def test_wide_and_reproducible(states):
    case = Case("", 2, 77, 200, states, order=GridPath.zigzag((7, 11)), initial_state=True)
    first, second = (outputs_and_gradients(case.arguments(), "triton", case.order) for _ in range(2))
    assert_close(first, truth(case), tolerance("float32", 77))
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name], err_msg=name)

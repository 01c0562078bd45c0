"""The selective scan in Mosaic GPU: run in numpy on any machine, lowered for CUDA, and run where there is a GPU."""

import dataclasses

import interpret_mosaic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_selective_scan import assert_close, gradients, lowered, outputs_and_gradients, tolerance, truth
from zigma_kernels import GridPath, selective_scan
from zigma_kernels.dispatch import nvidia_capability
from zigma_kernels.selective_scan.cases import CASES, Case
from zigma_kernels.selective_scan.mosaic_plan import Plan

TESTED = {name: case for name, case in CASES.items() if not case.bench}
EXTRA = {
    "long memory, cut": Case("", 1, 545, 2, 2, delta=(1e-6, 1e-4), initial_state=True),
    "8 states": Case("", 1, 40, 48, 8),
    "32 states, bfloat16": Case("", 1, 23, 140, 32, dtype="bfloat16", initial_state=True),
    "4 columns, bfloat16": Case("", 1, 17, 512, dtype="bfloat16"),  # in blocks of 3
    "3 columns": Case("", 1, 16, 300, order=GridPath.zigzag((4, 4))),  # in blocks of 2
    "no gate, bfloat16": Case("", 1, 20, 3, dtype="bfloat16", gate=False, initial_state=True),
    "1 token": Case("", 1, 1, 1, 1),
}
PARTS = {
    "ragged": Case("", 2, 150, 3, 2, delta=(1e-6, 0.1), initial_state=True),  # 10 chunks, the last one not full
    "bfloat16": Case("", 1, 150, 3, 2, dtype="bfloat16", delta=(1e-6, 0.1)),
    "no gate": Case("", 1, 160, 3, 2, delta=(1e-6, 0.1), gate=False, order=GridPath.zigzag((10, 16), (1, 0))),
    "segments": Case("", 1, 320, 3, 2, delta=(1e-6, 0.1), order=GridPath.zigzag((2, 10, 16), (1, 2))),
}
HOPPER = jax.default_backend() == "gpu" and (nvidia_capability() or (0, 0)) >= (9, 0)
needs_hopper = pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA GPU of compute capability 9.0")


@pytest.fixture
def interpreted(monkeypatch):
    interpret_mosaic.interpret(monkeypatch)


def check(case):
    args = case.arguments()
    found = outputs_and_gradients(args, "mosaic_gpu", case.order)
    assert found["y"].dtype == args["u"].dtype
    for argument, x in args.items():
        assert found[f"d{argument}"].dtype == x.dtype, argument
    # States and sums are float32: in bfloat16 only what comes in and goes out is rounded, and starts of chunks.
    allowed = 4 * float(jnp.finfo(case.dtype).eps) if case.dtype == "bfloat16" else tolerance(case.dtype, case.length)
    assert_close(found, truth(case), allowed)
    return found


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", [name for name in TESTED | EXTRA if name != "long memory"])  # it takes a while
def test_interpreted(name):
    check((TESTED | EXTRA)[name])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("name", "splits", "chunks", "pieces"),
    [("ragged", 5, 2, 1), ("ragged", 2, 8, 4), *((name, 3, 4, 2) for name in PARTS)],
)
@pytest.mark.slow
def test_interpreted_in_parts(name, splits, chunks, pieces, monkeypatch):
    choose = Plan.choose

    def in_parts(*args):
        plan = choose(*args)
        assert plan.chunks == 10
        return dataclasses.replace(plan, splits=splits, chunks_per_split=chunks, pieces=pieces)

    monkeypatch.setattr(Plan, "choose", in_parts)
    check(PARTS[name])


@pytest.mark.usefixtures("interpreted")
def test_interpreted_along_a_traced_order():
    case = CASES["zigzag by columns"]
    args, order = case.arguments(), jnp.asarray(GridPath.zigzag((5, 7), (1, 0)).permutation)
    found = jax.jit(lambda order: outputs_and_gradients(args, "mosaic_gpu", order))(order)
    assert_close(found, truth(case), tolerance("float32", case.length))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("mapped", ["A", "u"])
@pytest.mark.slow
def test_interpreted_under_vmap_and_remat(mapped):
    case = CASES["zigzag by columns"]
    args = jax.tree.map(jnp.asarray, case.arguments())
    args[mapped] = jnp.stack([args[mapped], 2 * args[mapped]])
    axes = {key: 0 if key == mapped else None for key in args}

    def gradients_by(name):
        def loss(args):
            return jnp.sum(jnp.sin(selective_scan(**args, order=case.order, implementation=name)))

        return jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss)), in_axes=(axes,)))(args)

    expected = jax.tree.map(np.asarray, gradients_by("xla"))
    assert_close(gradients_by("mosaic_gpu"), expected, tolerance("float32", case.length))


def sharded(case):
    """The scan with batch over one mesh axis and channels over the other."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = {key: P("data", None, "model") for key in ("u", "dt", "z")}
    specs |= {key: P("data") for key in ("B", "C")} | {key: P("model") for key in ("A", "D", "dt_bias")}
    specs["initial_state"] = P("data", "model")

    def scan(args):
        return selective_scan(**args, order=case.order, implementation="mosaic_gpu")

    return jax.shard_map(scan, mesh=mesh, in_specs=(specs,), out_specs=specs["u"])


@pytest.mark.usefixtures("interpreted")
def test_interpreted_under_shard_map():
    case = CASES["zigzag by columns"]
    args = jax.tree.map(jnp.asarray, case.arguments())
    divided = {key: args[key] for key in ("u", "dt", "z", "initial_state")}  # others' gradients need the other devices

    def gradients_by(scan):
        return jax.jit(jax.grad(lambda divided: jnp.sum(jnp.sin(scan(args | divided)))))(divided)

    expected = gradients_by(lambda args: selective_scan(**args, order=case.order, implementation="xla"))
    found = gradients_by(sharded(case))
    assert_close(found, jax.tree.map(np.asarray, expected), tolerance("float32", case.length))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", ["sync_warpgroup", "await_copies"])
def test_not_waiting_is_found(name, monkeypatch):
    monkeypatch.setattr(f"zigma_kernels.mosaic_lanes.{name}", lambda *_: None)
    with pytest.raises(Exception, match=r"did not wait|may be reading"):
        outputs_and_gradients(CASES["plain"].arguments(), "mosaic_gpu")


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow if case.bench else ()) for name, case in CASES.items()),
        *("32 states, bfloat16", "no gate, bfloat16", "1 token"),
    ],
)
def test_every_case_lowers(name):
    case = (CASES | EXTRA)[name]
    program = lowered(gradients("mosaic_gpu", case.order), case.shapes)
    assert "@mosaic_gpu_v2" in program
    assert "gather" not in program  # the order is followed inside the kernels


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64"])
def test_a_traced_order_lowers(dtype):
    with jax.enable_x64(dtype == "int64"):
        args, order = CASES["plain"].shapes, jax.ShapeDtypeStruct((33,), dtype)
        assert "@mosaic_gpu_v2" in lowered(lambda args, order: gradients("mosaic_gpu", order)(args), args, order)


def test_vmap_remat_and_shard_map_lower():
    case = CASES["zigzag by columns"]
    args = case.shapes

    def loss(args):
        return jnp.sum(selective_scan(**args, order=case.order, implementation="mosaic_gpu"))

    pairs = args | {"A": jax.ShapeDtypeStruct((2, *args["A"].shape), "float32")}
    axes = {key: 0 if key == "A" else None for key in args}
    assert "@mosaic_gpu_v2" in lowered(jax.vmap(jax.grad(jax.checkpoint(loss)), in_axes=(axes,)), pairs)
    program = lowered(jax.grad(lambda args: jnp.sum(sharded(case)(args))), args)
    assert "@mosaic_gpu_v2" in program
    assert "all_reduce" in program  # parameters' gradients, summed over the shards


def test_what_is_refused():
    def call(case):
        return jax.eval_shape(lambda args: selective_scan(**args, implementation="mosaic_gpu"), case.shapes)

    with pytest.raises(NotImplementedError, match="takes float32 and bfloat16, not float16"):
        call(dataclasses.replace(CASES["plain"], dtype="float16"))
    with pytest.raises(NotImplementedError, match=r"up to 65535 sequences .*, not 65536"):
        call(dataclasses.replace(CASES["plain"], batch=2**16))
    with jax.enable_x64(True), pytest.raises(NotImplementedError, match="not float64"):
        call(dataclasses.replace(CASES["plain"], dtype="float64"))


@needs_hopper
@pytest.mark.parametrize("name", TESTED | EXTRA | PARTS)
def test_values_gradients_and_the_same_bits_again(name):
    case = (TESTED | EXTRA | PARTS)[name]
    first, second = check(case), check(case)
    for array, x in first.items():
        np.testing.assert_array_equal(x, second[array], err_msg=array)

"""The selective scan: every implementation against the reference in float64, and how it composes with JAX."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from zigma_kernels.grid_path import GridPath
from zigma_kernels.selective_scan import IMPLEMENTATIONS, selective_scan, xla, xla_chunks
from zigma_kernels.selective_scan.api import _check_shapes
from zigma_kernels.selective_scan.cases import CASES, Case
from zigma_kernels.visiting import Visit

# "xla" is token by token on the CPU that runs these tests; "xla_chunks" is what it is elsewhere. "cpu" has tests of its
# own as well, in test_cpu_kernels.
NAMES = ("cpu", "xla", "xla_chunks")


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


def gradients(implementation, order=None):
    """A function of the arguments: their gradients, by the outputs themselves, of outputs and final state."""

    def both(args):
        def run(args):
            return selective_scan(**args, order=order, return_final_state=True, implementation=implementation)

        outputs, vjp = jax.vjp(run, args)
        return vjp(outputs)

    return both


def lowered(function, *args, platform="cuda"):
    """The program for a platform, on any machine."""
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@functools.cache
def truth(case: Case):
    """The reference in float64."""
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


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case in CASES if not CASES[case].bench for name in ("cpu", "xla")]
    # Chunks take longer to compile: the cases that differ inside them.
    + [(case, "xla_chunks") for case in ("plain", "bfloat16", "steps from 1e-6 to 50", "time in a video")],
)
def test_values_and_gradients(case, name):
    case = CASES[case]
    args = case.arguments()
    found = outputs_and_gradients(args, name, case.order)
    assert found["y"].dtype == args["u"].dtype
    assert found["final_state"].dtype == jnp.float32
    for argument, x in args.items():
        assert found[f"d{argument}"].dtype == x.dtype, argument
    assert_close(found, truth(case), tolerance(case.dtype, case.length))


@pytest.mark.parametrize("name", ["xla", "xla_chunks"])
def test_float64(name):
    case = CASES["steps from 1e-6 to 50"]
    with jax.enable_x64(True):
        found = outputs_and_gradients(case.arguments("float64"), name)
        assert {x.dtype.name for x in found.values()} == {"float64"}
        assert_close(found, truth(case), tolerance("float64", case.length))


@pytest.mark.parametrize("length", [1, 17])
def test_lengths_about_a_chunk(length):
    case = Case("", 1, length, 3, 2, delta=(1e-6, 50.0), initial_state=True)
    found = outputs_and_gradients(case.arguments(), "xla")
    assert_close(found, truth(case), tolerance("float32", length))


@pytest.mark.parametrize("name", ["reference", *NAMES])
def test_any_permutation_traced(name):
    case = CASES["plain"]
    args, expected = case.arguments(), truth(case)
    scan = jax.jit(lambda args, order: selective_scan(**args, order=order, implementation=name))
    sequences = ("u", "dt", "B", "C")
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(case.length)
        # Arrays laid out so that visiting them in `order` gives the case's sequence.
        shuffled = args | {key: args[key][:, np.argsort(order)] for key in sequences}
        y = np.asarray(scan(shuffled, jnp.asarray(order)))[:, order]
        assert_close({"y": y}, {"y": expected["y"]}, tolerance("float32", case.length))


def test_gradients_along_a_numpy_permutation_and_its_grid_path():
    path = GridPath.random((6, 7), seed=3)
    args = Case("", 1, 42, 3, 2).arguments()
    found = outputs_and_gradients(args, "xla", np.array(path.permutation))
    expected = jax.tree.map(np.asarray, outputs_and_gradients(args, "xla_chunks", path))
    assert_close(found, expected, tolerance("float32", 42))


@pytest.mark.parametrize("name", ["cpu", "xla", "xla_chunks", "reference"])
def test_orders_as_data(name):
    """A loop over a table of paths, each of three segments, gives what each path gives."""
    paths = GridPath.zigzag((3, 4, 5), (1, 2)), GridPath.raster((3, 4, 5), (2, 1), (True, False))
    args = jax.tree.map(jnp.asarray, Case("", 1, 60, 3, 2).arguments())
    table = Visit.table(paths)

    @jax.jit
    def both(args):
        def one(_, i):
            return None, selective_scan(**args, order=table[i], implementation=name)

        return jax.lax.scan(one, None, jnp.arange(2))[1]

    for path, y in zip(paths, both(args), strict=True):
        expected = selective_scan(**args, order=path, implementation=name)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    short = {key: x[:, :59] if x.ndim == 3 else x for key, x in args.items()}
    with pytest.raises(ValueError, match=r"order: a Visit of \(60,\) tokens, but the arrays hold 59"):
        selective_scan(**short, order=table[0], implementation=name)


def test_a_scan_resumes_from_a_state():
    case = CASES["steps from 1e-6 to 50"]
    args = jax.tree.map(jnp.asarray, case.arguments())
    y, state = selective_scan(**args, return_final_state=True)
    parts, h = [], args.pop("initial_state")
    for part in (slice(0, 21), slice(21, None)):
        piece = args | {key: args[key][:, part] for key in ("u", "dt", "B", "C", "z")}
        y_part, h = selective_scan(**piece, initial_state=h, return_final_state=True)
        parts.append(y_part)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(h, state, rtol=1e-5, atol=1e-5)


def test_tiny_steps_are_exact():
    # softplus(dt) = exp(dt) to float32's last digit at dt = -16; log(1 + exp(dt)) would give 0 or 1.19e-7.
    ones = jnp.ones((1, 1, 1))
    y = selective_scan(ones, -16 * ones, -jnp.ones((1, 1)), ones, ones)
    np.testing.assert_allclose(y.item(), np.exp(-16.0), rtol=1e-6)
    huge = selective_scan(ones, 1e4 * ones, -jnp.ones((1, 1)), ones, ones)
    assert huge.item() == 1e4


def test_under_vmap():
    case = CASES["zigzag by columns"]
    args, order = case.arguments(), case.order
    args["A"] = np.stack([args["A"], 2 * args["A"]])
    axes = {key: 0 if key == "A" else None for key in args}

    def loss(args):
        return jnp.sum(jnp.sin(selective_scan(**args, order=order)))

    together = jax.jit(jax.vmap(jax.grad(loss), in_axes=(axes,)))(args)
    one_by_one = jax.jit(jax.grad(loss))
    for i in range(2):
        expected = one_by_one(args | {"A": args["A"][i]})
        found = jax.tree.map(lambda x, i=i: x[i], together)
        assert_close(found, jax.tree.map(np.asarray, expected), tolerance("float32", 35))


def test_under_remat():
    case = CASES["plain"]

    def loss(args):
        return jnp.sum(jnp.sin(selective_scan(**args)))

    args = case.arguments()
    expected = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(args))
    assert_close(jax.jit(jax.grad(jax.checkpoint(loss)))(args), expected, tolerance("float32", 33))


@pytest.mark.parametrize("name", NAMES)
def test_under_shard_map(name):
    """Batch over one mesh axis, channels over the other; each gradient is the one of the whole."""
    case = Case("", 4, 20, 4, 2, order=GridPath.zigzag((4, 5)))
    args = case.arguments()
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = {key: P("data", None, "model") for key in ("u", "dt", "z")}
    specs |= {key: P("data") for key in ("B", "C")} | {key: P("model") for key in ("A", "D", "dt_bias")}

    def scan(args):
        return selective_scan(**args, order=case.order, implementation=name)

    sharded = jax.shard_map(scan, mesh=mesh, in_specs=(specs,), out_specs=specs["u"])

    def loss(f):
        return jax.jit(jax.value_and_grad(lambda args: jnp.sum(jnp.sin(f(args)))))

    value, gradients = loss(sharded)(args)
    expected_value, expected = loss(scan)(args)
    np.testing.assert_allclose(value, expected_value, rtol=1e-4)
    assert_close(gradients, jax.tree.map(np.asarray, expected), tolerance("float32", 20))


def test_reference_in_forward_mode_and_twice():
    case = Case("", 1, 6, 2, 1, order=GridPath.zigzag((2, 3), (1, 0)))
    args = jax.tree.map(jnp.asarray, case.arguments())

    def loss(u):
        return jnp.sum(jnp.sin(selective_scan(**args | {"u": u}, order=case.order, implementation="reference")))

    @jax.jit
    def both_ways(u, v):
        forward_over_reverse = jax.jvp(jax.grad(loss), (u,), (v,))[1]
        return forward_over_reverse, jax.grad(lambda u: jnp.vdot(jax.grad(loss)(u), v))(u)

    u = args["u"]
    hvp, twice = both_ways(u, jnp.cos(u))
    np.testing.assert_allclose(hvp, twice, rtol=1e-4, atol=1e-5)


def test_memory():
    """Forward and backward together need less than 10 times the bytes of u beyond arguments and results."""
    case = CASES["long"]
    args = case.shapes

    def both(args, dy):
        y, vjp = jax.vjp(lambda args: selective_scan(**args, implementation="xla"), args)
        return y, vjp(dy)

    memory = jax.jit(both).lower(args, args["u"]).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= 10 * 4 * case.batch * case.length * case.channels


def test_lowering_chooses_the_form_by_platform():
    args = CASES["plain"].shapes

    def hlo(platform):
        return lowered(lambda args: selective_scan(**args), args, platform=platform)

    # Chunks are padded to a multiple of 16 tokens; the kernel needs nothing padded.
    assert "stablehlo.pad" not in hlo("cpu")
    assert "zigma_selective_scan_forward" in hlo("cpu")
    for platform in ("cuda", "tpu"):
        assert "stablehlo.pad" in hlo(platform)
        assert "zigma_selective_scan_forward" not in hlo(platform)


def test_a_named_implementation_never_falls_back(monkeypatch):
    def unsupported(*args):
        raise NotImplementedError("states = 3")

    def unused(*args):
        raise AssertionError("fell back")

    args = jax.tree.map(jnp.asarray, CASES["plain"].arguments())
    implementations = {"picky": unsupported, **IMPLEMENTATIONS}
    monkeypatch.setattr(sys.modules["zigma_kernels.selective_scan.api"], "IMPLEMENTATIONS", implementations)
    np.testing.assert_array_equal(selective_scan(**args), selective_scan(**args, implementation="cpu"))
    monkeypatch.setitem(implementations, "cpu", unused)
    with pytest.raises(NotImplementedError, match="states = 3"):
        selective_scan(**args, implementation="picky")
    with pytest.raises(ValueError, match=r"'fast'; known: picky, .*xla, reference"):
        selective_scan(**args, implementation="fast")


def test_bad_arguments_are_refused():
    args = jax.tree.map(jnp.asarray, CASES["plain"].arguments())
    with pytest.raises(ValueError, match=r"order: .* visits 35 tokens, but the arrays hold 33"):
        selective_scan(**args, order=GridPath.zigzag((5, 7)))
    with pytest.raises(ValueError, match=r"order: expected shape \(33,\)"):
        selective_scan(**args, order=np.arange(32))
    with pytest.raises(ValueError, match=r"order: not a permutation"):
        selective_scan(**args, order=np.zeros(33, np.int32))
    with pytest.raises(TypeError, match=r"order: expected an array of integers"):
        selective_scan(**args, order=np.arange(33.0))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("A", (4, 3), r"A: expected shape \(d, n\) with d = 5"),
        ("dt", (2, 32, 5), r"dt: expected shape \(b, L, d\) = \(2, 33, 5\)"),
        ("B", (2, 33, 4), r"B: expected shape \(b, L, n\) = \(2, 33, 3\)"),
        ("initial_state", (2, 3, 5), r"initial_state: expected shape \(b, d, n\) = \(2, 5, 3\)"),
    ],
)
def test_bad_shapes_are_refused(name, shape, message):
    args = dict.fromkeys(("D", "z", "dt_bias", "initial_state")) | CASES["plain"].arguments()
    args[name] = np.zeros(shape)
    with pytest.raises(ValueError, match=message):
        _check_shapes(**args, segments=1)

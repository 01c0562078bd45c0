"""SSD: the chunked form against the reference token by token in float64, values and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zigma_kernels import GridPath, selective_scan, ssd
from zigma_kernels.ssd.api import _check
from zigma_kernels.ssd.chunked import CHUNK

HEADS, SIZE, N = 2, 3, 5
ORDERS = {
    "raster": None,
    "reversed": GridPath.raster((5, 14)).reversed(),
    "zigzag": GridPath.zigzag((5, 14), (1, 0), (True, False)),
    "hilbert": GridPath.hilbert((5, 14)),
    "random": GridPath.random((5, 14), 3),
    "rows": GridPath.raster((5, 14), (1,)),
    "frames": GridPath.zigzag((2, 5, 7), (1, 2)),
    "traced": jnp.asarray(np.random.default_rng(4).permutation(70)),
}


def arguments(length: int, order=None, dtype="float64", batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(length)
    segments = order.segments if isinstance(order, GridPath) else 1
    state = (batch, HEADS, SIZE, N) if segments == 1 else (batch, segments, HEADS, SIZE, N)
    shapes = {
        "u": (batch, length, HEADS, SIZE),
        "dt": (batch, length, HEADS),
        "B": (batch, length, N),
        "C": (batch, length, N),
        "D": (HEADS,),
        "dt_bias": (HEADS,),
        "initial_state": state,
    }
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    return arrays | {"A": -np.exp(rng.standard_normal(HEADS)).astype(dtype)}


def outputs_and_gradients(args, order, implementation):
    def run(args):
        return ssd(**args, order=order, return_final_state=True, implementation=implementation)

    @jax.jit
    def both(args):
        outputs, vjp = jax.vjp(run, args)
        rng = np.random.default_rng(1)
        return outputs, vjp(jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), outputs))[0]

    (y, state), gradients = both(jax.tree.map(jnp.asarray, args))
    return {"y": y, "final_state": state} | {f"d{name}": gradient for name, gradient in gradients.items()}


def compare(found, expected, tolerance: float) -> None:
    for name, value in expected.items():
        value = np.asarray(value, np.float64)
        error = np.abs(np.asarray(found[name], np.float64) - value).max() / max(np.abs(value).max(), 1e-3)
        assert error < tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("name", ORDERS)
def test_every_order(name):
    order = ORDERS[name]
    with jax.enable_x64():
        args = arguments(70, order)
        expected = outputs_and_gradients(args, order, "reference")
        compare(outputs_and_gradients(args, order, "chunked"), expected, 1e-12)
    assert CHUNK < 70, "more than one chunk, the last one cut short"


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 4097])
def test_every_length(length):
    with jax.enable_x64():
        args = arguments(length, batch=1)
        expected = outputs_and_gradients(args, None, "reference")
        compare(outputs_and_gradients(args, None, "chunked"), expected, 1e-11)
        expected = jax.device_get(expected)
    single = {name: np.float32(array) for name, array in args.items()}
    compare(outputs_and_gradients(single, None, "chunked"), expected, 1e-3 if length > 1000 else 1e-4)


def test_strong_decay_neither_overflows_nor_spoils_the_gradient():
    args = arguments(2 * CHUNK, dtype="float32")
    args["dt"] = args["dt"] + 60.0  # exp(60 · 64) is beyond float32
    found = outputs_and_gradients(args, None, "chunked")
    assert all(np.isfinite(value).all() for value in found.values())


def test_bfloat16_is_as_near_as_its_operands_allow():
    args = arguments(200, dtype="float32")
    expected = outputs_and_gradients(args, None, "reference")
    half = {name: jnp.bfloat16(args[name]) if name in "uBC" or name == "dt" else args[name] for name in args}
    found = outputs_and_gradients(half, None, "chunked")
    assert found["y"].dtype == jnp.bfloat16
    assert found["final_state"].dtype == jnp.float32
    compare({name: found[name] for name in ("y", "final_state")}, {n: expected[n] for n in ("y", "final_state")}, 0.03)


def test_it_is_the_selective_scan_of_one_decay_a_head():
    order = ORDERS["zigzag"]
    args = jax.tree.map(jnp.asarray, arguments(70, order, "float32"))
    wide = {name: jnp.repeat(args[name], SIZE, axis=-1) for name in ("dt", "D", "dt_bias")}
    expected = selective_scan(
        args["u"].reshape(2, 70, -1),
        wide["dt"],
        jnp.broadcast_to(jnp.repeat(args["A"], SIZE)[:, None], (HEADS * SIZE, N)),
        args["B"],
        args["C"],
        wide["D"],
        dt_bias=wide["dt_bias"],
        order=order,
        initial_state=args["initial_state"].reshape(2, -1, N),
    )
    np.testing.assert_allclose(ssd(**args, order=order).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_a_sequence_in_two_parts_by_its_state():
    args = jax.tree.map(jnp.asarray, arguments(100, dtype="float32"))
    whole = ssd(**args)
    first, second = (
        {n: a[:, s] if a.ndim > 1 and a.shape[1] == 100 else a for n, a in args.items()}
        for s in (slice(0, 37), slice(37, None))
    )
    y, state = ssd(**first, return_final_state=True)
    z = ssd(**second | {"initial_state": state})
    np.testing.assert_allclose(jnp.concatenate([y, z], 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "shape"), [("dt", (2, 70)), ("A", (3,)), ("B", (2, 69, N)), ("initial_state", (2, HEADS, SIZE, N + 1))]
)
def test_shapes_that_do_not_fit(field, shape):
    args = arguments(70, dtype="float32") | {field: np.zeros(shape, np.float32)}
    names = ("u", "dt", "A", "B", "C", "D", "dt_bias", "initial_state")
    with pytest.raises(ValueError, match=rf"^{field}: expected shape"):
        _check(*(args[name] for name in names), segments=1)

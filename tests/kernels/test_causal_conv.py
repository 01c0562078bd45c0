"""The causal convolution: against its definition, its gradients against the reference's in float64.

On machines without a GPU the kernel for them runs in Pallas' interpreter, and is lowered for CUDA.
"""

import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import PartitionSpec as P
from zigma_kernels.causal_conv import IMPLEMENTATIONS, causal_conv
from zigma_kernels.causal_conv.api import _check
from zigma_kernels.causal_conv.cases import CASES
from zigma_kernels.grid_path import GridPath

TESTED = [case for case in CASES.values() if not case.bench]


def arrays(case):
    return jax.tree.map(jnp.asarray, case.arguments())


def interpreting(implementation):
    return implementation == "mosaic_gpu" and jax.default_backend() != "gpu"


def interpreted(implementation):
    return plgpu.force_gpu_interpret_mode() if interpreting(implementation) else nullcontext()


def by_definition(case):
    """Loops over tokens in float64."""
    args = case.arguments("float64")
    x, weight, width = args["x"], args["weight"], case.width
    order = np.arange(case.length) if case.order is None else case.order.permutation
    segments = 1 if case.order is None else case.order.segments
    length = case.length // segments
    past = args.get("initial_state", np.zeros((case.batch, segments, width - 1, case.channels)))
    past = past.reshape(case.batch, segments, width - 1, case.channels)
    y = np.zeros_like(x)
    for segment in range(segments):
        window = [past[:, segment, k] for k in range(width - 1)]
        for t in order[segment * length : (segment + 1) * length]:
            window.append(x[:, t])
            y[:, t] = sum(weight[k] * window[k - width] for k in range(width))
    y = y + args.get("bias", 0)
    return y / (1 + np.exp(-y)) if case.activation else y


def value_and_gradients(args, case, implementation):
    @jax.jit
    def both(args):
        y, vjp = jax.vjp(lambda args: causal_conv(**args, **case.options, implementation=implementation), args)
        dy = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape), y.dtype)
        return y, vjp(dy)[0]

    y, gradients = both(args)
    return {"y": y} | gradients


def assert_close(found, expected, eps):
    """Within a few roundings of sums over taps, tokens and batch, relative to each array's largest entry."""
    for name, want in expected.items():
        want = np.asarray(want, np.float64)
        error = np.abs(np.asarray(found[name], np.float64) - want).max() / np.abs(want).max()
        assert error <= 16 * eps, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("name", ["cpu", "xla", "reference"])
@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.name)
def test_values(case, name):
    y = causal_conv(**arrays(case), **case.options, implementation=name)
    assert y.dtype == jnp.dtype(case.dtype)
    assert_close({"y": y}, {"y": by_definition(case)}, float(jnp.finfo(case.dtype).eps))


@functools.cache
def of_reference(case):
    with jax.enable_x64(True):
        expected = value_and_gradients(jax.tree.map(jnp.asarray, case.arguments("float64")), case, "reference")
        assert {x.dtype.name for x in expected.values()} == {"float64"}
        return jax.tree.map(np.asarray, expected)


@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.name)
@pytest.mark.parametrize("name", [name for name in IMPLEMENTATIONS if name != "reference"])
def test_value_and_gradients(case, name):
    with interpreted(name):
        found = value_and_gradients(arrays(case), case, name)
    for argument, x in case.arguments().items():
        assert found[argument].dtype == x.dtype, argument
    assert found["y"].dtype == jnp.dtype(case.dtype)
    assert_close(found, of_reference(case), float(jnp.finfo(case.dtype).eps))


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_the_kernel_lowers_for_cuda(case):
    def both(args):
        y, vjp = jax.vjp(lambda args: causal_conv(**args, **case.options, implementation="mosaic_gpu"), args)
        return y, vjp(y)

    text = jax.jit(both).trace(case.shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu_v2") == 2  # one pass over memory forward, one backward


def test_the_kernel_lowers_where_64_bits_are_enabled():
    x, weight = jnp.ones((1, 8, 2)), jnp.ones((4, 2))
    with jax.enable_x64(True):
        conv = functools.partial(causal_conv, order=np.arange(8)[::-1].copy(), implementation="mosaic_gpu")
        assert "@mosaic_gpu_v2" in gradients(conv).trace(x, weight).lower(lowering_platforms=("cuda",)).as_text()


def test_the_kernel_refuses_float64():
    with jax.enable_x64(True), pytest.raises(NotImplementedError, match="x is float64; the kernel takes float32"):
        causal_conv(jnp.ones((1, 8, 2), jnp.float64), jnp.ones((4, 2)), implementation="mosaic_gpu")


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_any_permutation_traced(name):
    args = arrays(CASES["width 4"])
    expected = np.asarray(causal_conv(**args, implementation="xla"))
    conv = jax.jit(lambda args, order: causal_conv(**args, order=order, implementation=name))
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(21)
        with interpreted(name):
            y = conv(args | {"x": args["x"][:, np.argsort(order)]}, jnp.asarray(order))
        np.testing.assert_allclose(np.asarray(y)[:, order], expected, rtol=1e-5, atol=1e-5)


def test_the_backward_pass_keeps_no_more_than_the_arguments():
    args, case = CASES["bfloat16"].shapes, CASES["bfloat16"]

    def kept(args):
        conv = functools.partial(causal_conv, **case.options, implementation="xla")
        return jax.vjp(lambda args: conv(**args), args)[1]

    def size(arrays):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))

    orders = 2 * 4 * case.length  # a visiting order and its inverse
    assert size(jax.eval_shape(kept, args)) <= size(args) + orders


def test_a_convolution_resumes_from_the_last_tokens():
    args = arrays(CASES["width 4"])
    x = args["x"]
    first = causal_conv(**args | {"x": x[:, :10]})
    second = causal_conv(**args | {"x": x[:, 10:], "initial_state": x[:, 7:10]})
    whole = causal_conv(**args)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, rtol=1e-5, atol=1e-6)


def gradients(conv):
    return jax.jit(jax.grad(lambda *args: jnp.sum(jnp.sin(conv(*args))), argnums=(0, 1)))


@pytest.mark.parametrize("name", ["cpu", "mosaic_gpu", "xla"])
def test_under_vmap_and_remat(name):
    case = CASES["zigzag by columns"]
    args = arrays(case)
    conv = functools.partial(causal_conv, order=case.order, implementation=name)
    together = jax.jit(jax.vmap(gradients(conv if interpreting(name) else jax.checkpoint(conv)), (0, None)))
    with interpreted(name):
        dx, dweight = together(args["x"][:, None], args["weight"])
    whole_dx, whole_dweight = gradients(functools.partial(causal_conv, order=case.order))(args["x"], args["weight"])
    np.testing.assert_allclose(dx[:, 0], whole_dx, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dweight.sum(0), whole_dweight, rtol=1e-5, atol=1e-5)


def sharded(conv):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = P("data", None, "model"), P(None, "model")
    return jax.shard_map(conv, mesh=mesh, in_specs=specs, out_specs=specs[0])


def test_under_shard_map():
    normal = np.random.default_rng(0).standard_normal
    x, weight = (jnp.asarray(normal(shape), jnp.float32) for shape in ((4, 12, 8), (4, 8)))
    conv = functools.partial(causal_conv, order=GridPath.zigzag((3, 4)))
    for found, expected in zip(gradients(sharded(conv))(x, weight), gradients(conv)(x, weight), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_kernel_lowers_under_remat_and_shard_map():
    conv = functools.partial(causal_conv, order=GridPath.zigzag((3, 4)), implementation="mosaic_gpu")
    x, weight = jnp.ones((4, 12, 8)), jnp.ones((4, 8))
    for f in (jax.checkpoint(conv), sharded(conv)):
        assert "@mosaic_gpu_v2" in gradients(f).trace(x, weight).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.zeros((5, 5))}, r"weight: expected shape \(width, d\) with width 2 to 4 and d = 5"),
        ({"weight": np.zeros((4, 6))}, r"weight: expected shape"),
        ({"bias": np.zeros(4)}, r"bias: expected shape \(d,\) = \(5,\), got \(4,\)"),
        ({"activation": "gelu"}, r"activation: expected 'silu' or None, got 'gelu'"),
        ({"initial_state": np.zeros((2, 4, 5))}, r"initial_state: expected shape \(2, 3, 5\)"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        _check(**(CASES["width 4"].arguments() | {"activation": "silu", "segments": 1} | change))
    with pytest.raises(ValueError, match="unknown implementation 'fast'; known: cpu, xla, reference, mosaic_gpu"):
        causal_conv(**arrays(CASES["width 4"]), implementation="fast")

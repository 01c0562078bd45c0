"""An op made of two opaque passes: divided over eight devices, mapped, checkpointed, scanned over.

Plain JAX stands in for the kernels. Nothing that wraps them can see into them: the partitioner has no more than
the names of axes, and vmap no rule.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from zigma_kernels.partitioned import opaque_op, vary_alike

SIZES = {"b": 8, "L": 6, "d": 16, "n": 4}
AXES = {  # of what the selective scan takes
    "u": "b L d",
    "dt": "b L d",
    "A": "n d",
    "B": "b L n",
    "C": "b L n",
    "D": "d",
    "z": "b L d",
    "dt_bias": "d",
    "state": "b n d",
}
EVERY = ("data", "fsdp")


def arguments():
    normal = np.random.default_rng(0).standard_normal
    shapes = {name: [SIZES[axis] for axis in axes.split()] for name, axes in AXES.items()}
    return {name: jnp.asarray(normal(shape), jnp.float32) for name, shape in shapes.items()}


def transparent(order, u, dt, A, B, C, D, z, dt_bias, state):
    """Something like the scan: every argument counts, and d sums over n, and the other way round."""
    u, dt, B = (x if order is None else x[:, order] for x in (u, dt, B))
    h = jnp.cumsum(jax.nn.softplus(dt + dt_bias)[:, :, None] * jnp.exp(A) * B[..., None] * u[:, :, None], axis=1)
    h = h + state[:, None]
    y = jnp.sum(h * C[..., None], axis=2) + D * u
    return y if z is None else y * jax.nn.silu(z), h[:, -1]


def forward(order, *arrays):
    return *transparent(order, *arrays), 2 * arrays[-1]


def backward(order, doubled, dy, dfinal, *arrays):
    arrays = (*arrays[:-1], doubled / 2)
    by_sample = [x is not None and x.ndim > 2 for x in arrays]

    def sample(gradients, *arrays):
        def run(*arrays):
            batch = [x[None] if own else x for x, own in zip(arrays, by_sample, strict=True)]
            return [x[0] for x in transparent(order, *batch)]

        return jax.vjp(run, *arrays)[1](gradients)

    return jax.vmap(sample, (0, *(0 if own else None for own in by_sample)))([dy, dfinal], *arrays)


op = opaque_op(forward, backward, arguments=", ".join(AXES.values()), results="b L d, b n d", saved="b n d")


def opaque(order, **args):
    return op(order, *vary_alike(tuple(args[name] for name in AXES)))


def loss(args, function=opaque, order=None):
    y, state = function(order, **args)
    return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state))


def gradients(function=opaque):
    return jax.value_and_grad(functools.partial(loss, function=function))


def assert_close(found, expected):
    """To a few roundings of float32 sums, relative to each array's largest entry."""

    def check(x, want):
        assert x.dtype == want.dtype
        np.testing.assert_allclose(x, want, rtol=0, atol=1e-5 * np.abs(np.asarray(want)).max())

    jax.tree.map(check, found, expected)


@functools.cache
def expected():
    return jax.jit(gradients(transparent))(arguments())


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), EVERY, axis_types=(AxisType.Auto,) * 2)


def specs(batch, channels, parameters=None):
    """How arguments are divided: batch, channels, and the channels of parameters if otherwise."""
    of_rows = {"b": batch, "d": channels}
    of_parameters = {"d": parameters or channels}
    return {
        name: P(*((of_rows if "b" in axes.split() else of_parameters).get(axis) for axis in axes.split()))
        for name, axes in AXES.items()
    }


def place(args, mesh, specs):
    return {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in args.items()}


def collectives(compiled):
    """{operation: sizes of its results on a device} in a compiled program."""
    found = {}
    operations = r"= (.*?) (all-\w+|reduce-scatter|collective-permute)(?:-start)?\("
    for shape, name in re.findall(operations, compiled.as_text()):
        sizes = [int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\[([\d,]*)\]", shape)]
        found.setdefault(name, []).extend(sizes)
    return found


def test_on_one_device():
    assert_close(jax.jit(gradients())(arguments()), expected())
    assert_close(opaque(None, **arguments()), transparent(None, **arguments()))


@pytest.mark.parametrize(
    "layout",
    [(EVERY, None), ("data", "fsdp"), (None, EVERY), (EVERY, None, "fsdp")],
    ids=["batch", "batch and channels", "channels", "batch, parameters divided"],
)
def test_under_a_mesh(mesh, layout):
    args = place(arguments(), mesh, specs(*layout))
    compiled = jax.jit(gradients()).lower(args).compile()
    found = compiled(args)
    assert_close(found, expected())
    assert found[1]["u"].sharding.is_equivalent_to(args["u"].sharding, 3)
    moved = collectives(compiled)
    assert moved.keys() <= {"all-reduce", "all-gather"}
    gathered = moved.get("all-gather", [])
    assert max(gathered, default=0) <= SIZES["d"] * SIZES["n"]  # A at most
    assert bool(gathered) == (len(layout) == 3)


def test_a_missing_argument_has_no_gradient(mesh):
    args = arguments() | {"z": None}
    wanted = jax.jit(gradients(transparent))(args)
    del args["z"]
    args = place(args, mesh, specs("data", "fsdp"))
    args = {name: args.get(name) for name in AXES}
    found = jax.jit(gradients())(args)
    assert found[1]["z"] is None
    assert_close(found, wanted)


def test_layers_scanned_and_checkpointed_under_a_mesh(mesh):
    args = arguments()
    A = jnp.stack([args["A"], args["A"] / 2])

    def deep(args, function):
        @jax.checkpoint
        def layer(u, A):
            y, _ = function(None, **args | {"u": u, "A": A})
            return y, None

        return jnp.sum(jnp.sin(jax.lax.scan(layer, args["u"], args["A"])[0]))

    def gradients(function):
        return jax.jit(jax.grad(functools.partial(deep, function=function)))

    wanted = gradients(transparent)(args | {"A": A})
    layout = specs(EVERY, None)
    args = place(args | {"A": A}, mesh, layout | {"A": P(None, None, "fsdp")})
    compiled = gradients(opaque).lower(args).compile()
    assert_close(compiled(args), wanted)
    assert max(collectives(compiled).get("all-gather", [0])) <= A.size


def test_a_divided_sequence_is_gathered(mesh):
    args = arguments()
    args["u"] = jax.device_put(args["u"], NamedSharding(mesh, P(None, "fsdp", "data")))
    assert_close(jax.jit(gradients())(args), expected())


def test_channels_are_divided_by_the_multiple_that_the_kernel_takes(mesh):
    def shapes_seen(multiple):
        seen = set()

        def forward(_, x):
            seen.add(x.shape)
            return x, x

        axes = dict.fromkeys(("arguments", "results", "saved"), "b d")
        op = opaque_op(forward, lambda _, x, dy, __: (dy * x,), channels=multiple, **axes)
        x = jax.device_put(jnp.ones((8, 16)), NamedSharding(mesh, P("data", "fsdp")))
        jax.jit(op)(None, x)
        return seen

    assert shapes_seen(8) == {(8, 16), (2, 8)}
    assert shapes_seen(16) == {(8, 16), (2, 16)}


def test_under_shard_map(mesh):
    """Batch over one mesh axis, channels over the other; each gradient is the one of the whole."""
    layout = specs("data", "fsdp")

    def sharded(_, **args):
        results = layout["u"], layout["state"]
        return jax.shard_map(lambda args: opaque(None, **args), mesh=mesh, in_specs=(layout,), out_specs=results)(args)

    assert_close(jax.jit(gradients(sharded))(place(arguments(), mesh, layout)), expected())


def test_a_shard_map_over_a_part_of_the_mesh_is_refused(mesh):
    def part(args):
        return opaque(None, **args)

    layout = specs("data", None)
    sharded = jax.shard_map(
        part, mesh=mesh, in_specs=(layout,), out_specs=(layout["u"], layout["state"]), axis_names={"data"}
    )
    with pytest.raises(NotImplementedError, match=r"leaves mesh axes \(fsdp\) to the partitioner"):
        jax.jit(sharded)(arguments())


@pytest.mark.parametrize("mapped", [("u", "B", "state"), ("A", "dt")])
def test_under_vmap(mesh, mapped):
    """Mapped samples become one batch; with mapped parameters it is one call after the other."""
    args = arguments()
    args |= {name: jnp.stack([args[name], 0.5 * args[name]]) for name in mapped}
    axes = {name: 0 if name in mapped else None for name in args}
    wanted = jax.jit(jax.vmap(gradients(transparent), (axes,)))(args)
    together = jax.jit(jax.vmap(gradients(), (axes,)))
    assert_close(together(args), wanted)
    layout = {name: P(None, *spec) if name in mapped else spec for name, spec in specs(EVERY, None).items()}
    args = place(args, mesh, layout)
    compiled = together.lower(args).compile()
    assert_close(compiled(args), wanted)
    assert "all-gather" not in collectives(compiled)


def test_what_is_visited_may_be_traced_and_mapped():
    orders = jnp.stack([jnp.arange(6), jnp.arange(6)[::-1]])

    def both(function):
        def at(order):
            return jax.grad(functools.partial(loss, function=function, order=order))(arguments())

        return jax.jit(jax.vmap(at))(orders)

    assert_close(both(opaque), both(transparent))


def test_gradients_have_their_arguments_dtypes(mesh):
    args = {name: x if name in ("A", "state") else x.astype(jnp.bfloat16) for name, x in arguments().items()}
    found = jax.jit(jax.grad(lambda args: loss(args).astype(jnp.float32)))(place(args, mesh, specs("data", "fsdp")))
    assert {name: g.dtype for name, g in found.items()} == {name: x.dtype for name, x in args.items()}


def test_programs_that_differ_in_their_kernels_alone_are_cached_apart(mesh, tmp_path):
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_remove_custom_partitioning_ptr_from_cache_key": True,
    }
    before = {name: getattr(jax.config, name) for name in settings}

    def configure(settings):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    def run(kernel):
        axes = dict.fromkeys(("arguments", "results", "saved"), "b d")
        op = opaque_op(lambda _, x: (kernel(x), x), lambda *_: None, **axes)
        x = jax.device_put(jnp.ones((8, 16)), NamedSharding(mesh, P(EVERY)))

        def partitioned(x):
            return op(None, x)[0]

        return float(jax.jit(partitioned)(x)[0, 1])

    table = np.arange(16, dtype=np.float32)
    configure(settings)
    try:
        assert [run(lambda x: 2 * x), run(lambda x: 3 * x), run(lambda x: 2 * x)] == [2, 3, 2]
        assert [run(lambda x: table * x), run(lambda x: (table + 1) * x)] == [1, 2]
        assert len(list(tmp_path.glob("jit_partitioned-*"))) == 4  # the third was found
    finally:
        configure(before)

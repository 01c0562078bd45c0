"""Scan and convolution over tokens divided among devices: the same values and gradients as on one device."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from zigma_kernels import GridPath, causal_conv, selective_scan
from zigma_kernels.across import Layout, conv, enter, leave, scan
from zigma_kernels.grid_path import zigzag_paths

B, D, N = 2, 3, 4
GRID = (8, 4)
PATHS = {
    "raster": GridPath.raster(GRID),
    "rows from the bottom": zigzag_paths(GRID)[4],
    "columns": zigzag_paths(GRID)[1],
    "hilbert": GridPath.hilbert(GRID, (1, 0)),
    "random": GridPath.random(GRID, 3),
    "frames": GridPath.zigzag((8, 2, 2), (1, 2)),  # eight sequences, two a device
    "two sequences": GridPath.zigzag((2, 4, 4), (2, 1)),  # each on two devices
}


@functools.cache
def mesh():
    return jax.make_mesh((1, 4), ("data", "seq"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])


def divided(function, tokens, weights=0, out=1):
    spec = PartitionSpec("data", "seq")
    outs = (spec, PartitionSpec("data"))[:out] if out > 1 else spec
    return jax.shard_map(
        function, mesh=mesh(), in_specs=(spec,) * tokens + (PartitionSpec(),) * weights, out_specs=outs
    )


def arrays():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    tokens = [normal(B, 32, size) for size in (D, D, N, N, D)]  # u, dt, B, C, z
    return tokens, [-jnp.exp(normal(D, N)), normal(D), normal(D)], [normal(4, D), normal(D)]


def entered(layout: Layout, *arrays) -> Any:
    """What a device has of each, as its layout lays them."""
    return tuple(enter(x, layout) for x in arrays)


@pytest.mark.parametrize("name", PATHS)
def test_tokens_are_laid_in_visiting_order_and_back(name):
    path = PATHS[name]
    layout = Layout(path, "seq", 4)
    x = jnp.arange(2 * 32.0).reshape(2, 32, 1)
    laid = jax.jit(divided(lambda x: enter(x, layout), 1))(x)
    blocks = np.asarray(laid).reshape(2, 4, 8)[:, np.argsort(layout.ranks)]
    np.testing.assert_array_equal(blocks.reshape(2, 32), np.asarray(x)[:, path.permutation, 0])
    np.testing.assert_array_equal(divided(lambda x: leave(enter(x, layout), layout), 1)(x), x)
    assert layout.moves == (name not in ("raster", "rows from the bottom", "frames"))


@pytest.mark.parametrize(
    ("name", "backward"),
    [
        pytest.param(name, backward, marks=[pytest.mark.slow] * (backward and name != "columns"))
        for name in PATHS
        for backward in (False, True)
    ],
)
def test_values_and_gradients_are_those_of_one_device(name, backward):
    path = PATHS[name]
    layout = Layout(path, "seq", 4, backward)
    tokens, weights, of_conv = arrays()
    order = path.reversed() if backward else path
    wanted = jnp.cos(jnp.arange(B * 32 * D, dtype=jnp.float32)).reshape(B, 32, D)

    def whole(tokens, weights, of_conv):
        u, dt, b, c, z = tokens
        u = causal_conv(u, *of_conv, order=order, activation="silu")
        return jnp.vdot(selective_scan(u, dt, weights[0], b, c, weights[1], z, weights[2], order=order), wanted)

    def parts(tokens, weights, of_conv):
        def local(u, dt, b, c, z, a, d, bias, kernel, shift):
            u, dt, b, c, z = entered(layout, u, dt, b, c, z)
            u = conv(u, kernel, shift, layout)
            return leave(scan(u, dt, a, b, c, d, z, bias, layout), layout)

        return jnp.vdot(divided(local, 5, 5)(*tokens, *weights, *of_conv), wanted)

    expected, of_one = jax.jit(jax.value_and_grad(whole, (0, 1, 2)))(tokens, weights, of_conv)
    found, of_four = jax.jit(jax.value_and_grad(parts, (0, 1, 2)))(tokens, weights, of_conv)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    for a, b in zip(jax.tree.leaves(of_one), jax.tree.leaves(of_four), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()))


@pytest.mark.parametrize("name", ["raster", "columns"])
def test_final_state(name):
    layout = Layout(PATHS[name], "seq", 4)
    (u, dt, b, c, z), (a, d, bias), _ = arrays()
    _, expected = selective_scan(u, dt, a, b, c, d, z, bias, order=PATHS[name], return_final_state=True)

    def local(u, dt, b, c, z, a, d, bias):
        u, dt, b, c, z = entered(layout, u, dt, b, c, z)
        return scan(u, dt, a, b, c, d, z, bias, layout, return_final_state=True)

    _, found = divided(local, 5, 3, out=2)(u, dt, b, c, z, a, d, bias)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match="30 tokens cannot be divided evenly"):
        Layout(GridPath.raster((5, 6)), "seq", 4)
    with pytest.raises(ValueError, match="segments of 12 tokens are neither parts nor multiples of a device's 9"):
        Layout(GridPath.raster((3, 12), axes=(1,)), "seq", 4)

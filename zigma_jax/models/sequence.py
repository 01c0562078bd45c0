"""The mixer's ops over tokens that lie on one device, or are divided among the devices of the mesh's token axis."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import zigma_kernels
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float
from zigma_kernels import GridPath, Visit, across
from zigma_kernels.across import Layout

from zigma_jax.errors import ConfigError
from zigma_jax.models.placement import SAMPLES, TOKENS, current_mesh, parts

DIVIDED = PartitionSpec(SAMPLES, TOKENS)
Order = GridPath | Visit | Layout


def check_tokens(cfg: Any, devices: int) -> None:
    """Raises ConfigError unless the tokens of a model of this configuration can be divided among so many devices."""
    if devices == 1:
        return

    def refuse(reason: str):
        raise ConfigError(f"config.train.seq = {devices}: {reason}")

    scans = getattr(cfg, "mixer", "") == "mamba" and not cfg.attention_every
    if not scans:
        refuse("tokens are divided among devices for a ZigMa with mixer = 'mamba' in every layer alone")
    if cfg.num_tokens % devices:
        refuse(f"must divide the model's {cfg.num_tokens} tokens")
    if cfg.num_tokens // devices < cfg.conv_width:
        refuse(f"leaves a device {cfg.num_tokens // devices} tokens, fewer than conv_width = {cfg.conv_width}")
    from zigma_jax.models.orders import scan_orders

    for path in scan_orders(cfg.scan, cfg.grid, seed=cfg.scan_seed).paths:
        try:
            Layout(path, TOKENS, devices)
        except ValueError as error:
            refuse(str(error))


def in_visiting_order(
    x: Float[Array, "b L hidden"], orders: tuple[GridPath | Visit, ...]
) -> tuple[Array, tuple[Order, ...], Callable[[Array], Array]]:
    """Tokens laid as a layer with these orders, a path and perhaps its reverse, visits them, and how to lay them back.

    On one device, or where no mesh is, all is as it was.
    """
    devices = parts(TOKENS)
    if devices == 1:
        return x, orders, lambda y: y
    assert isinstance(orders[0], GridPath)
    layout = Layout(orders[0], TOKENS, devices)
    layouts = (layout, Layout(orders[0], TOKENS, devices, backward=True))[: len(orders)]

    def lay(function, x):
        return _divided(partial(function, layout=layout), 1)(x)

    return lay(across.enter, x), layouts, partial(lay, across.leave)


def causal_conv(x: Array, weight: Array, bias: Array, *, order: Order, activation: Literal["silu"] | None) -> Array:
    """`zigma_kernels.causal_conv`, also along a `Layout`."""
    if not isinstance(order, Layout):
        return zigma_kernels.causal_conv(x, weight, bias, order=order, activation=activation)
    run = partial(across.conv, layout=order, activation=activation)
    return _divided(lambda x, weight, bias: run(x, weight, bias), 1, 2)(x, weight, bias)


def selective_scan(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    z: Array,
    dt_bias: Array,
    *,
    order: Order,
    implementation: str | None = None,
) -> Array:
    """`zigma_kernels.selective_scan`, also along a `Layout`."""
    if not isinstance(order, Layout):
        return zigma_kernels.selective_scan(u, dt, A, B, C, D, z, dt_bias, order=order, implementation=implementation)

    def run(u, dt, B, C, z, A, D, dt_bias):
        return across.scan(u, dt, A, B, C, D, z, dt_bias, order, implementation=implementation)

    return _divided(run, 5, 3)(u, dt, B, C, z, A, D, dt_bias)


def _divided(function: Callable[..., Any], tokens: int, weights: int = 0) -> Callable[..., Array]:
    """The function on each device's samples and tokens: first so many arrays of tokens, then so many of weights."""
    specs = (DIVIDED,) * tokens + (PartitionSpec(),) * weights
    return jax.shard_map(function, mesh=current_mesh(), in_specs=specs, out_specs=DIVIDED)

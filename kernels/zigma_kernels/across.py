"""Sequence ops over tokens that are divided among devices; to be called under `jax.shard_map`.

Of L tokens, each of s devices along a mesh axis holds L / s neighbours in raster order. An op that visits them in
another order needs each device to hold a range of *visiting positions* instead: `Layout` says who holds what, `enter`
lays tokens so, and `leave` lays them back. Where a device's tokens are such a range already (a zigzag by rows, from the
top or from the bottom), nothing travels; otherwise every token travels once, in one all-to-all exchange.

In that layout the ops are local ones and a small exchange: `conv` gets the last tokens of the device before, and `scan`
the state after them. A state that enters a device leaves it multiplied by the device's decay, so that states go from
device to device by an associative scan of (decay, state), in log2(s) rounds, and the local scan starts from what comes
out. Nothing of this changes the result but the order of float32 sums.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from zigma_kernels.causal_conv import causal_conv
from zigma_kernels.grid_path import GridPath
from zigma_kernels.selective_scan import selective_scan


@dataclass(frozen=True)
class Layout:
    """Who holds which visiting positions of a path; hashable.

    Attributes:
        path: the visiting order.
        axis: the mesh axis that the tokens are divided over.
        devices: how many there are along it.
        backward: the ops go along the path from its end; what is held stays.
    """

    path: GridPath
    axis: str
    devices: int
    backward: bool = False

    def __post_init__(self):
        if reason := self.refusal():
            raise ValueError(f"{self.path} over {self.devices} devices: {reason}")

    def refusal(self) -> str:
        """Why the path cannot be divided so; empty if it can."""
        if self.path.length % self.devices:
            return f"its {self.path.length} tokens cannot be divided evenly"
        local, segment = self.path.length // self.devices, self.path.segment_length
        if local % segment and segment % local:
            return f"segments of {segment} tokens are neither parts nor multiples of a device's {local}"
        return ""

    @property
    def local(self) -> int:
        """Tokens a device."""
        return self.path.length // self.devices

    @property
    def segments(self) -> int:
        """Whole sequences a device; 1 where a sequence is divided over several devices."""
        return max(1, self.local // self.path.segment_length)

    @property
    def group(self) -> int:
        """Devices that share a sequence."""
        return max(1, self.path.segment_length // self.local)

    @property
    def moves(self) -> bool:
        """Whether tokens travel between devices."""
        return _tables(self.path, self.devices)[0] is None

    @property
    def ranks(self) -> tuple[int, ...]:
        """Which range of visiting positions each device holds."""
        ranks = _tables(self.path, self.devices)[0]
        return tuple(range(self.devices)) if ranks is None else ranks

    def chain(self, step: int) -> list[tuple[int, int]]:
        """Pairs of devices, `step` apart in the order of the visit, within one sequence."""
        device = {rank: number for number, rank in enumerate(self.ranks)}
        pairs = [(r, r + step) for r in range(self.devices - step) if r % self.group + step < self.group]
        return [(device[b], device[a]) if self.backward else (device[a], device[b]) for a, b in pairs]

    def order(self) -> GridPath:
        """The visiting order of a device's tokens, of each of its sequences."""
        return GridPath.raster((self.local // self.segments,), flip=(self.backward,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def enter(x: Array, layout: Layout) -> Array:
    """From raster order, (b, L / s, …) on each device, to the layout's."""
    ranks, send, place, _, _, inside = _tables(layout.path, layout.devices)
    return _exchange(x, layout, inside[0]) if ranks is not None else _exchange(x, layout, place, send)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def leave(y: Array, layout: Layout) -> Array:
    """Back to raster order."""
    ranks, _, _, send, place, inside = _tables(layout.path, layout.devices)
    return _exchange(y, layout, inside[1]) if ranks is not None else _exchange(y, layout, place, send)


# Each is a permutation of all tokens, so that its transpose is the other one.
enter.defvjp(lambda x, layout: (enter(x, layout), None), lambda layout, _, g: (leave(g, layout),))
leave.defvjp(lambda y, layout: (leave(y, layout), None), lambda layout, _, g: (enter(g, layout),))


def _exchange(x: Array, layout: Layout, place: np.ndarray, send: np.ndarray | None = None) -> Array:
    """place (s, L / s): which of what a device has after the exchange goes where; send (s, s, m): what goes to whom."""
    here = lax.axis_index(layout.axis)
    if send is not None:
        parcels = jnp.take(x, jnp.asarray(send)[here], axis=1)  # (b, s, m, …)
        parcels = lax.all_to_all(parcels, layout.axis, split_axis=1, concat_axis=1)
        x = parcels.reshape(x.shape[0], -1, *x.shape[2:])
    elif (place == np.arange(layout.local)).all():
        return x
    return jnp.take(x, jnp.asarray(place)[here], axis=1)


def conv(
    x: Array, weight: Array, bias: Array | None, layout: Layout, activation: Literal["silu"] | None = "silu"
) -> Array:
    """`causal_conv` along the layout's path; x and the result lie as the layout says."""
    tokens, past = _folded(x, layout), len(weight) - 1
    state = None
    if layout.group > 1:
        ends = tokens[:, :past][:, ::-1] if layout.backward else tokens[:, -past:]
        state = lax.ppermute(ends, layout.axis, layout.chain(1))  # zeros where nobody is before
    y = causal_conv(tokens, weight, bias, order=layout.order(), activation=activation, initial_state=state)
    return y.reshape(x.shape)


def scan(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    z: Array | None,
    dt_bias: Array | None,
    layout: Layout,
    *,
    return_final_state: bool = False,
    implementation: str | None = None,
):
    """`selective_scan` along the layout's path, whose tokens lie as the layout says.

    With `return_final_state`, also the state (b, d, n) after the last visited token, on every device; only for a path
    of one sequence.
    """
    options = {"order": layout.order(), "implementation": implementation}
    shape = u.shape
    u, dt, B, C, *gate = (_folded(x, layout) for x in (u, dt, B, C, *(() if z is None else (z,))))
    gate = gate[0] if gate else None

    @jax.checkpoint  # what its backward pass needs is computed there, so that it is never held beside the scan's below
    def summary(u, dt, A, B, C, dt_bias):
        _, state = selective_scan(u, dt, A, B, C, dt_bias=dt_bias, return_final_state=True, **options)
        steps = dt.astype(state.dtype)
        steps = jax.nn.softplus(steps if dt_bias is None else steps + dt_bias.astype(state.dtype)).sum(1)
        return jnp.exp(steps[..., None] * A.astype(state.dtype)), state

    initial = None
    if layout.group > 1:
        decay, state = summary(u, dt, A, B, C, dt_bias)
        after = _after(decay, state, layout)
        initial = lax.ppermute(after, layout.axis, layout.chain(1))
    y, state = selective_scan(
        u, dt, A, B, C, D, gate, dt_bias, initial_state=initial, return_final_state=True, **options
    )
    y = y.reshape(shape)
    if not return_final_state:
        return y
    if layout.path.segments > 1:
        raise ValueError(f"final state: {layout.path} visits {layout.path.segments} sequences, not one")
    last = layout.ranks.index(0 if layout.backward else layout.devices - 1)
    mine = lax.axis_index(layout.axis) == last
    return y, lax.psum(jnp.where(mine, state, 0), layout.axis)


def _after(decay: Array, state: Array, layout: Layout) -> Array:
    """The state after each device's tokens, from what it makes of no state: an associative scan over the devices."""
    step = 1
    while step < layout.group:
        pairs = layout.chain(step)
        before_decay, before_state = lax.ppermute((decay, state), layout.axis, pairs)
        state = decay * before_state + state  # zeros come where nobody is that far before
        receives = np.zeros(layout.devices, bool)
        receives[[there for _, there in pairs]] = True
        decay = decay * jnp.where(jnp.asarray(receives)[lax.axis_index(layout.axis)], before_decay, 1)
        step *= 2
    return state


def _folded(x: Array, layout: Layout) -> Array:
    """(b, L / s, …) with a device's whole sequences as samples."""
    return x.reshape(x.shape[0] * layout.segments, layout.local // layout.segments, *x.shape[2:])


@functools.lru_cache(maxsize=256)
def _tables(path: GridPath, devices: int) -> tuple[Any, ...]:
    """(ranks, send, place, send back, place back, (inside, its inverse)); ranks None where tokens travel.

    Otherwise ranks is the range that each device holds, and `inside` (s, L / s) orders its own tokens.
    """
    local, order = path.length // devices, path.permutation.reshape(devices, -1)
    holder, at = np.divmod(order, local)  # of each visiting position: who has its token, and where
    if (holder == holder[:, :1]).all():  # every range lies on one device
        ranks = np.argsort(holder[:, 0])
        inside = at[ranks]
        return tuple(ranks.tolist()), None, None, None, None, (inside, np.argsort(inside, axis=1))
    counts = np.array([[np.sum(holder[b] == a) for b in range(devices)] for a in range(devices)])
    most = counts.max()
    send = np.zeros((devices, devices, most), np.int32)  # [from, to]: places of tokens at the sender
    back = np.zeros((devices, devices, most), np.int32)
    place, place_back = (np.zeros((devices, local), np.int32) for _ in range(2))
    for b in range(devices):
        for a in range(devices):
            positions = np.flatnonzero(holder[b] == a)
            tokens, number = at[b, positions], np.arange(len(positions))
            send[a, b, : len(tokens)] = tokens
            back[b, a, : len(tokens)] = positions
            place[b, positions] = a * most + number
            place_back[a, tokens] = b * most + number
    return None, send, place, back, place_back, None

"""The causal convolution on NVIDIA GPUs (Pallas, Mosaic GPU): one pass over memory forward, one backward.

A program takes a block of channels and a tile of visited tokens, 128 threads side by side on the channels. It
walks the tile in visiting order with the last tokens of the window in registers, so each row of x, y, dy and
dx crosses memory once, wherever the order says that it lies; only the width - 1 rows before a tile (backward
also those after it) are read again by the next, mostly from cache. Rows of a few tokens are loaded together,
to have enough bytes under way. All sums are in float32. The backward pass recomputes the pre-activation and
writes each program's share of the gradients of weight and bias for XLA to add up: the same bits every time.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from zigma_kernels.partitioned import opaque_op
from zigma_kernels.visiting import Visit

THREADS = 128
LARGEST_GRID = 2**16 - 1
LARGEST_TILE = 128  # tokens of a program
ENOUGH_PROGRAMS = 1024  # to fill a GPU; with fewer, tiles are made smaller
FORWARD_CHANNELS = 4  # of a thread, at most
BACKWARD_CHANNELS = 2


def causal_conv(x, weight, bias, order, activation, initial_state):
    """The contract in `api`."""
    for name, array in (("x", x), ("weight", weight), ("bias", bias), ("initial_state", initial_state)):
        if array.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
            raise NotImplementedError(f"{name} is {array.dtype}; the kernel takes float32, bfloat16 and float16")
    b, L, d = x.shape
    visit = Visit.along(order, L)
    past = initial_state.reshape(b, visit.segments, len(weight) - 1, d)
    arrays = x, weight.astype(jnp.float32), bias.astype(jnp.float32), past
    if spare := -d % THREADS:
        arrays = [jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, spare)]) for a in arrays]
    (y,) = _op(activation)(visit.tokens.astype(jnp.int32), *arrays)
    return y[:, :, :d]


@functools.cache
def _op(activation):
    """(tokens (L,), x (b, L, d), weight (width, d), bias (d,), past (b, segments, width - 1, d)) -> (y (b, L, d),)"""

    def forward(tokens, x, weight, bias, past):
        plan = Plan.of(x, past, FORWARD_CHANNELS)
        y = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return plan.launch(_forward, activation, (y,), x, weight, bias, past, tokens)

    def backward(tokens, dy, x, weight, bias, past):
        plan = Plan.of(x, past, BACKWARD_CHANNELS)
        shares = jax.ShapeDtypeStruct((len(x), plan.spans, len(weight) + 1, x.shape[2]), jnp.float32)
        out_type = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, past, shares))
        dx, dpast, shares = plan.launch(_backward, activation, out_type, x, weight, bias, past, tokens, dy)
        sums = shares.sum(axis=1)
        return dx, sums[:, :-1], sums[:, -1], dpast

    arguments = "b L d, width d, d, b segments past d"
    return opaque_op(forward, backward, arguments=arguments, results="b L d", channels=THREADS)


@dataclass(frozen=True)
class Plan:
    """Who computes what.

    Each segment's `length` visited tokens are cut into tiles; a program takes `tiles_each` consecutive tiles
    of one batch entry (more than one where segments are short) and `channels` channels. Tokens of a tile are
    taken in groups of `group`, at least width - 1 of them.
    """

    batch: int
    segments: int
    length: int
    blocks: int  # of channels
    channels: int
    group: int
    tile: int
    tiles_each: int

    @classmethod
    def of(cls, x, past, channels):
        batch, L, d = x.shape
        length = L // past.shape[1]
        channels = THREADS * next(n for n in (8, 4, 2, 1) if n <= channels and d % (THREADS * n) == 0)
        group = 8 if length % 8 == 0 else 4
        tile = LARGEST_TILE
        while tile > 16 and batch * (L // tile) * (d // channels) < ENOUGH_PROGRAMS:
            tile //= 2
        short = -(-length // group) * group  # a whole segment, at most `tile` tokens
        tiles_each = max(1, tile // short)
        return cls(batch, past.shape[1], length, d // channels, channels, group, min(tile, short), tiles_each)

    @property
    def tiles_of_segment(self):
        return -(-self.length // self.tile)

    @property
    def spans(self):
        """Number of programs that share the tokens of a batch entry."""
        return -(-self.segments * self.tiles_of_segment // self.tiles_each)

    @property
    def ragged(self):
        """Whether groups may reach beyond their segment."""
        return self.length % self.group != 0

    @property
    def layout(self):
        return plgpu.Layout.WG_STRIDED((self.channels,), self.channels // THREADS)

    def launch(self, kernel, activation, out_type, *operands):
        if max(self.batch, self.spans) > LARGEST_GRID:
            raise NotImplementedError(f"batch {self.batch} and {self.spans} tiles: CUDA allows {LARGEST_GRID} of each")
        params = plgpu.CompilerParams(
            approx_math=True,
            unsafe_no_auto_barriers=True,  # safe: no memory is both read and written
            lowering_semantics=plgpu.LoweringSemantics.Lane,
        )
        grid = {"entry": self.batch, "span": self.spans, "block": self.blocks}
        run = plgpu.kernel(
            functools.partial(kernel, self, activation),
            out_type=out_type,
            grid=tuple(grid.values()),
            grid_names=tuple(grid),
            compiler_params=params,
            kernel_name=f"causal_conv{kernel.__name__}",  # as profiles show it
        )
        with jax.enable_x64(False):  # indices of 64 bits do not mix with the GPU's
            return run(*operands)

    def program(self):
        """(batch entry, span, slice of channels) of this program."""
        entry, span, block = (lax.axis_index(name) for name in ("entry", "span", "block"))
        return entry, span, pl.ds(block * self.channels, self.channels)

    def for_each_tile(self, span, body, carry):
        """carry = body(segment, rank in it of the tile's first token, number of groups, carry), tile by tile."""

        def tile(i, carry):
            segment, start = lax.div(i, self.tiles_of_segment), lax.rem(i, self.tiles_of_segment) * self.tile
            groups = lax.div(jnp.minimum(self.tile, self.length - start) + self.group - 1, self.group)
            return body(segment, start, groups, carry)

        if self.tiles_each == 1:
            return tile(span, carry)
        first = span * self.tiles_each
        last = jnp.minimum(first + self.tiles_each, self.segments * self.tiles_of_segment)
        return lax.fori_loop(first, last, tile, carry)

    def load(self, ref, *index):
        return plgpu.load(ref.at[index], layout=self.layout).astype(jnp.float32)

    def zeros(self):
        return plgpu.layout_cast(jnp.zeros(self.channels, jnp.float32), self.layout)

    def visited(self, tokens, segment, rank):
        """The token visited at `rank` in `segment`, the last one for ranks beyond."""
        return tokens[segment * self.length + jnp.minimum(rank, self.length - 1)]

    def window(self, x, past, tokens, entry, segment, start, here):
        """The rows visited before rank `start`, the earliest first."""
        n = past.shape[2]

        def given():
            return tuple(self.load(past, entry, segment, k, here) for k in range(n))

        def visited():
            before = [self.visited(tokens, segment, start - n + k) for k in range(n)]
            return tuple(self.load(x, entry, t, here) for t in before)

        return lax.cond(start == 0, given, visited)


def _forward(plan, activation, x, weight, bias, past, tokens, y):
    entry, span, here = plan.program()
    taps, offset = [plan.load(weight, k, here) for k in range(weight.shape[0])], plan.load(bias, here)

    def tile(segment, start, groups, carry):
        def group(g, window):
            ranks = [start + g * plan.group + i for i in range(plan.group)]
            visited = [plan.visited(tokens, segment, rank) for rank in ranks]
            rows = [plan.load(x, entry, t, here) for t in visited]
            for rank, t, row in zip(ranks, visited, rows, strict=True):
                out = _weighted(taps, (*window, row), offset)
                out = out * _sigmoid(out) if activation else out
                _store(y, (entry, t, here), out, rank < plan.length if plan.ragged else None)
                window = (*window[1:], row)
            return window

        lax.fori_loop(0, groups, group, plan.window(x, past, tokens, entry, segment, start, here))
        return carry

    plan.for_each_tile(span, tile, ())


def _backward(plan, activation, x, weight, bias, past, tokens, dy, dx, dpast, shares):
    entry, span, here = plan.program()
    taps, offset = [plan.load(weight, k, here) for k in range(weight.shape[0])], plan.load(bias, here)
    n = past.shape[2]

    def gradient(window, dy):
        """Of the pre-activation."""
        if not activation:
            return dy
        pre = _weighted(taps, window, offset)
        gate = _sigmoid(pre)
        return dy * gate * (1 + pre * (1 - gate))

    def tile(segment, start, groups, sums):
        def load(ranks):
            visited = [plan.visited(tokens, segment, rank) for rank in ranks]
            return [(plan.load(x, entry, t, here), plan.load(dy, entry, t, here)) for t in visited]

        def store(rank, recent):  # recent: gradients of the pre-activation at rank … rank + n
            t = plan.visited(tokens, segment, rank)
            _store(dx, (entry, t, here), _weighted(taps[::-1], recent), rank < plan.length if plan.ragged else None)

        def group(g, carry):
            window, recent, sums = carry
            ranks = [start + g * plan.group + i for i in range(plan.group)]
            for i, (rank, (row, dy_row)) in enumerate(zip(ranks, load(ranks), strict=True)):
                window = (*window, row)
                new = gradient(window, dy_row)
                if plan.ragged:
                    new = new * _one_if(rank < plan.length)
                terms = (*(new * row for row in window), new)
                sums = tuple(total + term for total, term in zip(sums, terms, strict=True))
                recent = (*recent, new)
                if i >= n:
                    store(rank - n, recent)
                else:  # ranks before the tile: another tile's or, before the segment, the initial state's
                    pl.when(g > 0)(functools.partial(store, rank - n, recent))
                    _store(dpast, (entry, segment, i, here), _weighted(taps[::-1], recent), (g == 0) & (start == 0))
                window, recent = window[1:], recent[1:]
            return window, recent, sums

        window = plan.window(x, past, tokens, entry, segment, start, here)
        window, recent, sums = lax.fori_loop(0, groups, group, (window, (plan.zeros(),) * n, sums))
        ranks = [start + groups * plan.group + i for i in range(n)]
        for rank, (row, dy_row) in zip(ranks, load(ranks), strict=True):
            window = (*window, row)
            recent = (*recent, gradient(window, dy_row) * _one_if(rank < plan.length))
            store(rank - n, recent)
            window, recent = window[1:], recent[1:]
        return sums

    sums = plan.for_each_tile(span, tile, (plan.zeros(),) * (n + 2))
    for k, total in enumerate(sums):
        shares[entry, span, k, here] = total


def _weighted(taps, rows, total=None):
    for tap, row in zip(taps, rows, strict=True):
        total = tap * row if total is None else total + tap * row
    return total


def _sigmoid(x):
    # An approximate root is one instruction, a division several.
    root = lax.rsqrt(1 + jnp.exp(-x))
    return root * root


def _one_if(condition):
    return lax.select(condition, jnp.float32(1), jnp.float32(0))


def _store(ref, index, row, condition=None):
    def store():
        ref[index] = row.astype(ref.dtype)

    store() if condition is None else pl.when(condition)(store)

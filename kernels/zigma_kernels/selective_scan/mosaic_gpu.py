"""The selective scan on NVIDIA GPUs from Hopper on, by kernels in Pallas (Mosaic GPU).

A thread scans one channel, with its n states in registers (`mosaic_forward`, `mosaic_backward`); rows are read, and
written, where they lie, by the index of the visited token, so that an order moves no data. Where batch and channels
are too few to occupy the GPU, sequences are cut into parts, and the state that enters each is found first
(`mosaic_carry`). Sums over channels (dB, dC) and over sequences (dA, dD, ddt_bias) are made without atomics, always
in the same order: two runs give the same bits.

The backward pass starts from states that the forward pass kept every 16 tokens: float32 ones, for bfloat16 arrays
rounded to bfloat16. It adds up dB and dC over channels on the tensor cores: exactly for float32, and for bfloat16
from products cut to TF32.
"""

import functools

import jax
import jax.numpy as jnp

from zigma_kernels.partitioned import opaque_op
from zigma_kernels.visiting import Visit, num_segments

LANES = 128  # channels of a warpgroup
STATES = 16  # that the kernels take
LARGEST_GRID = 2**16 - 1
LOG2E = 1.4426950408889634
H100 = 132  # multiprocessors: what is compiled for on a machine without a GPU


def selective_scan(u, dt, A, B, C, D, z, dt_bias, order, initial_state):
    """The contract in `api`.

    Channels are padded to a multiple of 128, states to one of 16. With more than 16 states, 16 at a time are scanned,
    in float32, and their outputs added: slower, and not what these kernels are for.
    """
    _require_support(order, u, dt, A, B, C, D, z, dt_bias, initial_state)
    visit = Visit.along(order, u.shape[1])
    state = initial_state.reshape(-1, visit.segments, *A.shape)
    tokens = None if visit.kind == "raster" else visit.tokens.astype(jnp.int32)
    n = A.shape[1]

    def states(x, first):
        """16 states of the last axis, in float32."""
        x = x[..., first : first + STATES].astype(jnp.float32)
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, STATES - x.shape[-1])]) if x.shape[-1] < STATES else x

    def scan(u, dt, D, z, first):
        dtype = jnp.promote_types(u.dtype, dt.dtype)
        rows = [None if x is None else _whole_columns(x.astype(dtype)) for x in (u, dt, z)]
        vectors = [_whole_columns(x.astype(jnp.float32)) for x in (D, dt_bias)]
        by_channel = [_whole_columns(jnp.swapaxes(states(x, first), -1, -2)) for x in (A, state)]
        BC = jnp.concatenate([states(B, first), states(C, first)], axis=-1)
        y, final = _scan()(tokens, *rows, BC, *by_channel, *vectors)
        final = jnp.swapaxes(final[..., : u.shape[2]], -1, -2)[..., : min(STATES, n - first)]
        return y[..., : u.shape[2]], final

    if n <= STATES:
        y, final = scan(u, dt, D, z, 0)
    else:
        wide, no_skip = u.astype(jnp.float32), jnp.zeros_like(D)
        parts = [scan(wide, dt, no_skip if first else D, None, first) for first in range(0, n, STATES)]
        y, final = functools.reduce(jnp.add, [y for y, _ in parts]), jnp.concatenate([x for _, x in parts], axis=-1)
        y = y if z is None else y * jax.nn.silu(z.astype(jnp.float32))
    return y.astype(u.dtype), final.reshape(initial_state.shape)


def _require_support(order, *arrays):
    unknown = {x.dtype.name for x in arrays if x is not None} - {"float32", "bfloat16"}
    if unknown:
        raise NotImplementedError(f"takes float32 and bfloat16, not {', '.join(sorted(unknown))}")
    sequences = arrays[0].shape[0] * num_segments(order)
    if sequences > LARGEST_GRID:
        raise NotImplementedError(f"takes up to {LARGEST_GRID} sequences (batch x segments), not {sequences}")


def _whole_columns(x):
    """The last axis, channels, padded to a multiple of 128."""
    spare = -x.shape[-1] % LANES
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)]) if spare else x


@functools.cache
def _scan():
    """The scan (tokens, u, dt, z, BC, A, state, D, dt_bias) -> (y, final state).

    BC (b, L, 32) is B beside C; A (n, d) and the states (b, segments, n, d) have channels last.
    """
    return opaque_op(
        functools.partial(_forward, True),
        _backward,
        alone=functools.partial(_forward, False),
        arguments="b L d, b L d, b L d, b L k, n d, b s n d, d, d",
        results="b L d, b s n d",
        saved="b c w d",
        channels=LANES,
        name="selective_scan",
    )


def _forward(keep, tokens, u, dt, z, BC, A, state, D, dt_bias):
    from zigma_kernels.selective_scan import mosaic_carry, mosaic_forward  # Pallas takes a second to import

    plan, A2, flat = _prepare(u, A, state)
    entering = mosaic_carry.entering(plan, False, tokens, u, dt, A2, BC, None, dt_bias, flat)
    y, ends, *starts = mosaic_forward.forward(plan, keep, tokens, u, dt, A2, BC, D, z, dt_bias, entering)
    starts = [x.reshape(u.shape[0], -1, *x.shape[2:]) for x in starts]  # (b, segments x chunks, …)
    return y, ends[:, -1].reshape(state.shape), *starts


def _backward(tokens, starts, dy, dfinal, u, dt, z, BC, A, state, D, dt_bias):
    from zigma_kernels.selective_scan import mosaic_backward, mosaic_carry

    plan, A2, _ = _prepare(u, A, state)
    starts = starts.reshape(plan.sequences, -1, *starts.shape[2:])
    dfinal = dfinal.reshape(plan.sequences, *A.shape)
    entering = mosaic_carry.entering(plan, True, tokens, dy, dt, A2, BC, z, dt_bias, dfinal)
    du, ddt, dBC, dA, vectors, dstate, *dz = mosaic_backward.backward(
        plan, tokens, starts, dy, entering, u, dt, A2, BC, D, z, dt_bias
    )
    dA, vectors = (x.reshape(u.shape[0], -1, *x.shape[2:]).sum(1) for x in (dA, vectors))  # of each sample
    dstate = dstate[:, 0].reshape(state.shape)
    return du, ddt, dz[0] if dz else None, dBC.sum(0), dA, dstate, vectors[:, 0], vectors[:, 1]


def _prepare(u, A, state):
    """(plan, A log2(e), states by sequence)"""
    from zigma_kernels.selective_scan.mosaic_plan import Plan

    (b, L, d), segments = u.shape, state.shape[1]
    processors = getattr(jax.devices()[0], "core_count", None) or H100
    plan = Plan.choose(b * segments, L // segments, d, A.shape[0], segments, u.dtype, processors)
    return plan, A * LOG2E, state.reshape(plan.sequences, *A.shape)

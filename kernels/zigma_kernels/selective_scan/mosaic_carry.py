"""What a part of a sequence does to the state that enters it: scans of the state alone, for sequences cut into parts.

A part turns the state h that enters it into exp(A sum of delta) h + carry, where `carry` is the state it ends with if
none enters. In reverse the same holds of the state's gradient, with C dy for delta u B.
"""

# References that are None are those of arrays that are.
# pyright: reportOptionalMemberAccess=false

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from zigma_kernels import mosaic_lanes as lanes
from zigma_kernels.mosaic_lanes import LANES
from zigma_kernels.selective_scan.mosaic_plan import (
    F32,
    FOUND,
    GROUP,
    STAGES,
    Place,
    Plan,
    given,
    shape,
    softplus,
    softplus_and_sigmoid,
)


def entering(plan: Plan, reverse, tokens, x, dt, A2, BC, z, dt_bias, state):
    """The state that enters each part (q, splits, n, d), from the one that enters the sequence (q, n, d).

    Forward, x is u and z None; in reverse, x is dy.
    """
    if plan.splits == 1:
        return state[:, None]
    carry, total = _carries(plan, reverse, tokens, x, dt, A2, BC, z, dt_bias)
    return _chain(plan, reverse, carry, total, A2, state)


def _carries(plan: Plan, reverse, tokens, x, dt, A2, BC, z, dt_bias):
    """(carry (q, pieces, n, d), sum of delta (q, pieces, 1, d)), by pieces of all splits but the last to be visited."""
    n, chunk = plan.states, plan.chunk

    def kernel(*refs):
        refs = iter(refs)
        tokens_g = next(refs) if tokens is not None else None
        x_g, dt_g = next(refs), next(refs)
        z_g = next(refs) if z is not None else None
        BC_g, A_g, bias_g, carry_g, total_g, x_s, BC_s, found_s = refs
        place = Place(plan, tokens_g, found_s)
        x_s, own_BC_s = x_s.at[place.warpgroup], BC_s.at[place.warpgroup]
        A2 = [lanes.row(A_g.at[k, place.channels]) for k in range(n)]
        dt_bias = lanes.row(bias_g.at[place.channels])
        piece = place.part + plan.pieces * reverse
        chunks = plan.chunks_per_split // plan.pieces
        groups = jnp.clip(plan.chunks - piece * chunks, 0, chunks) * (chunk // GROUP)
        begin = piece * chunks * (chunk // GROUP)

        def visited(i):
            return begin + groups - 1 - i if reverse else begin + i

        def fetch(g):
            x = x_s.at[g & (STAGES - 1)]
            pairs = [(ref, x.at[j]) for j, ref in enumerate(given(x_g, dt_g, z_g))]
            place.fetch(g, *pairs, (BC_g, own_BC_s.at[g & (STAGES - 1)]))

        def prepare(g):
            """(delta, factor of B or C) of a group's tokens."""
            rows = x_s.at[g & (STAGES - 1)]
            deltas, factors = [], []
            for t in range(GROUP):
                values = [lanes.row(rows.at[j, pl.ds(t * LANES, LANES)]) for j in range(rows.shape[0])]
                factor, raw_delta, *gate = (value.astype(F32) for value in values)
                if z is None:
                    delta = softplus(raw_delta + dt_bias)
                else:
                    delta, s = softplus_and_sigmoid(raw_delta + dt_bias, gate[0])
                    factor = factor * gate[0] * s
                delta = place.masked(g * GROUP + t, delta)
                deltas.append(delta)
                factors.append(place.masked(g * GROUP + t, factor) if reverse else delta * factor)
            return tuple(deltas), tuple(factors)

        def group(i, carry):
            h, total, (delta, factor) = carry
            lanes.await_copies(1)  # as in the forward pass
            lanes.sync_warpgroup()
            place.find(visited(i + 5))
            fetch(visited(i + 3))
            after = prepare(visited(i + 1))
            h = list(h)
            at = [(2 * t + reverse) * n for t in range(GROUP)]
            P = [lanes.spread(BC_s.at[:, visited(i) & (STAGES - 1), pl.ds(at[t], n)]) for t in range(GROUP)]
            for k in range(n):
                for t in reversed(range(GROUP)) if reverse else range(GROUP):
                    decay, x = jnp.exp2(delta[t] * A2[k]), factor[t] * P[t][k]
                    h[k] = decay * (h[k] + x) if reverse else decay * h[k] + x
            for t in range(GROUP):
                total = total + delta[t]
            return tuple(h), total, after

        place.find_first([visited(i) for i in range(5)])
        for i in range(3):
            fetch(visited(i))
        lanes.await_copies(2)
        lanes.sync_warpgroup()
        carry = (lanes.zeros(),) * n, lanes.zeros(), prepare(visited(0))
        h, total, *_ = lax.fori_loop(0, groups, group, carry)
        lanes.await_copies(0)
        place.put_states(carry_g, h, piece)
        place.put_states(total_g, [total], piece)

    pieces = plan.splits * plan.pieces
    out = shape(plan.sequences, pieces, n, plan.channels), shape(plan.sequences, pieces, 1, plan.channels)
    scratch = [
        plgpu.SMEM((plan.warpgroups, STAGES, 2 + (z is not None), GROUP * LANES), x.dtype),
        plgpu.SMEM((plan.warpgroups, STAGES, GROUP * 2 * n), F32),
        plgpu.SMEM((plan.warpgroups, FOUND, GROUP), jnp.int32),
    ]
    run = plan.launch(kernel, out, scratch, pieces - plan.pieces)
    return run(*given(tokens, x, dt, z, BC, A2, dt_bias))


def _chain(plan: Plan, reverse, carry, total, A2, state):
    """`entering`, of the carries. A block takes one state of its channels: there are few channels, and many steps."""
    at_once = 8  # pieces read at once, lest each wait for the one before
    last = plan.splits * plan.pieces - 1

    def kernel(carry_g, total_g, A_g, state_g, entering_g):
        place = Place(plan)
        q, k, here = place.sequence, place.part, place.channels
        A2 = lanes.row(A_g.at[k, here])

        def several(i, h):
            steps = []
            for j in range(at_once):
                past = jnp.minimum(i * at_once + j, last)
                piece = last - past if reverse else past
                steps.append(
                    (piece, lanes.row(total_g.at[q, piece, 0, here]), lanes.row(carry_g.at[q, piece, k, here]))
                )
            for j, (piece, total, carry) in enumerate(steps):
                if j % plan.pieces == 0:

                    def put(split=piece // plan.pieces, h=h):
                        entering_g[q, split, k, here] = h

                    pl.when(i * at_once + j <= last)(put)
                h = jnp.exp2(total * A2) * h + carry
            return h

        lax.fori_loop(0, -(-(last + 1) // at_once), several, lanes.row(state_g.at[q, k, here]))

    out = shape(plan.sequences, plan.splits, plan.states, plan.channels)
    (entering,) = plan.launch(kernel, (out,), [], plan.states)(carry, total, A2, state)
    return entering

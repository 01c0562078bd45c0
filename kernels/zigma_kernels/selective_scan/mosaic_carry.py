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
from zigma_kernels.selective_scan.mosaic_plan import (
    F32,
    GROUP,
    Place,
    Plan,
    given,
    shape,
    softplus,
    softplus_and_sigmoid,
)


def carries(plan: Plan, reverse, tokens, x, dt, A2, BC, z, dt_bias):
    """(carry (q, pieces, n, d), sum of delta (q, pieces, 1, d)), by pieces of all splits but the one none else needs.

    Forward, x is u and z None; in reverse, x is dy.
    """
    n, chunk = plan.states, plan.chunk

    def kernel(*refs):
        refs = iter(refs)
        tokens_g = next(refs) if tokens is not None else None
        x_g, dt_g = next(refs), next(refs)
        z_g = next(refs) if z is not None else None
        BC_g, A_g, bias_g, carry_g, total_g, BC_s = refs
        place = Place(plan, tokens_g)
        here = place.channels
        A2 = [lanes.row(A_g.at[k, here]) for k in range(n)]
        dt_bias = lanes.row(bias_g.at[here])
        piece = place.part + plan.pieces * reverse
        chunks = plan.chunks_per_split // plan.pieces
        first = piece * chunks * chunk
        groups = jnp.clip(plan.chunks - piece * chunks, 0, chunks) * (chunk // GROUP)

        def at(i):
            return first + (groups - 1 - i if reverse else i) * GROUP

        def read(rows):
            gates = [lanes.row(z_g.at[place.batch, r, here]) for r in rows] if z is not None else None
            xs, dts = ([lanes.row(ref.at[place.batch, r, here]) for r in rows] for ref in (x_g, dt_g))
            return xs, dts, gates, lanes.rows_of_warps(BC_g.at[place.batch], rows)

        def prepare(i, raw):
            deltas, factors = [], []
            for t in range(GROUP):
                factor, raw_delta = raw[0][t].astype(F32), raw[1][t].astype(F32) + dt_bias
                if z is None:
                    delta = softplus(raw_delta)
                else:
                    gate = raw[2][t].astype(F32)
                    delta, s = softplus_and_sigmoid(raw_delta, gate)
                    factor = factor * gate * s
                delta = place.masked(at(i) + t, delta)
                deltas.append(delta)
                factors.append(place.masked(at(i) + t, factor) if reverse else delta * factor)
            return tuple(deltas), tuple(factors)

        def group(i, carry):
            h, total, now, raw, rows = carry
            lanes.sync_warpgroup()
            BC_s[place.warpgroup, lax.rem(i + 1, 2), :] = raw[3]
            later = read(rows)
            rows = place.rows(at(i + 3))
            after = prepare(i + 1, raw)
            h, (delta, factor) = list(h), now
            P = [
                lanes.spread(BC_s.at[place.warpgroup, lax.rem(i, 2), pl.ds((2 * t + reverse) * n, n)])
                for t in range(GROUP)
            ]
            for k in range(n):
                for t in reversed(range(GROUP)) if reverse else range(GROUP):
                    a, x = jnp.exp2(delta[t] * A2[k]), factor[t] * P[t][k]
                    h[k] = a * (h[k] + x) if reverse else a * h[k] + x
            for t in range(GROUP):
                total = total + delta[t]
            return tuple(h), total, after, later, rows

        raw = read(place.rows(at(0)))
        BC_s[place.warpgroup, 0, :] = raw[3]
        carry = (
            (lanes.zeros(),) * n,
            lanes.zeros(),
            prepare(0, raw),
            read(place.rows(at(1))),
            place.rows(at(2)),
        )
        h, total, *_ = lax.fori_loop(0, groups, group, carry)
        place.put_states(carry_g, h, piece)
        place.put_states(total_g, [total], piece)

    pieces = plan.splits * plan.pieces
    out = shape(plan.sequences, pieces, n, plan.channels), shape(plan.sequences, pieces, 1, plan.channels)
    scratch = [plgpu.SMEM((plan.warpgroups, 2, GROUP * 2 * n), F32)]
    run = plan.launch(kernel, out, scratch, pieces - plan.pieces)
    return run(*given(tokens, x, dt, z, BC, A2, dt_bias))


def enter(place: Place, A2, state, carry_g, total_g, reverse):
    """The state that enters this part, from the one that enters the sequence."""
    at_once = 8  # pieces read at once, lest each wait for the one before
    pieces = place.plan.splits * place.plan.pieces
    before = (place.plan.splits - 1 - place.part if reverse else place.part) * place.plan.pieces

    def several(i, state):
        for j in range(at_once):
            past = i * at_once + j
            piece = pieces - 1 - jnp.minimum(past, before - 1) if reverse else jnp.minimum(past, before - 1)
            (total,) = place.states(total_g, piece)
            carry = place.states(carry_g, piece)
            after = [jnp.exp2(total * A2[k]) * state[k] + carry[k] for k in range(len(state))]
            state = tuple(jnp.where(past < before, x, h) for x, h in zip(after, state, strict=True))
        return state

    return lax.fori_loop(0, (before + at_once - 1) // at_once, several, tuple(state))

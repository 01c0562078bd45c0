"""The selective scan's forward pass as a Mosaic GPU kernel: one channel a thread, its n states in registers."""

# References that are None are those of arrays that are.
# pyright: reportOptionalMemberAccess=false, reportOptionalIterable=false

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from zigma_kernels import mosaic_lanes as lanes
from zigma_kernels.selective_scan.mosaic_carry import enter
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


def forward(plan: Plan, keep, carries, tokens, u, dt, A2, BC, D, z, dt_bias, state):
    """y, the state each part ends with (q, splits, n, d), and with `keep` those at the chunks' starts."""
    n, chunk = plan.states, plan.chunk
    packed = u.dtype == jnp.bfloat16

    def kernel(*refs):
        refs = iter(refs)
        tokens_g = next(refs) if tokens is not None else None
        u_g, dt_g = next(refs), next(refs)
        z_g = next(refs) if z is not None else None
        BC_g, A_g, D_g, bias_g, state_g = (next(refs) for _ in range(5))
        carries_g = (next(refs), next(refs)) if carries is not None else None
        y_g, final_g = next(refs), next(refs)
        starts_g = next(refs) if keep else None
        (BC_s,) = refs
        place = Place(plan, tokens_g)
        here, batch = place.channels, place.batch
        A2 = [lanes.row(A_g.at[k, here]) for k in range(n)]
        skip, dt_bias = lanes.row(D_g.at[here]), lanes.row(bias_g.at[here])
        first = place.part * plan.chunks_per_split
        count = jnp.minimum(plan.chunks_per_split, plan.chunks - first)

        def read(rows):
            gates = [lanes.row(z_g.at[batch, r, here]) for r in rows] if z is not None else None
            us, dts = ([lanes.row(ref.at[batch, r, here]) for r in rows] for ref in (u_g, dt_g))
            return us, dts, gates, lanes.rows_of_warps(BC_g.at[batch], rows)

        def prepare(i, raw):
            deltas, gates = [], []
            for t in range(GROUP):
                x = raw[1][t].astype(F32) + dt_bias
                if z is None:
                    delta, gate = softplus(x), None
                else:
                    gate = raw[2][t].astype(F32)
                    delta, s = softplus_and_sigmoid(x, gate)
                    gate = gate * s
                deltas.append(place.masked(i + t, delta))
                gates.append(gate)
            return tuple(deltas), tuple(raw[0][t].astype(F32) for t in range(GROUP)), tuple(gates)

        def group(start, i, carry):
            h, now, rows, raw, next_rows, later_rows = carry
            at = start + i * GROUP
            parity = lax.rem(at // GROUP, 2)
            lanes.sync_warpgroup()
            BC_s[place.warpgroup, 1 - parity, :] = raw[3]
            later = read(later_rows)
            more_rows = place.rows(at + 3 * GROUP)
            after = prepare(at + GROUP, raw)
            h, (delta, uu, gate) = list(h), now
            du, y = [delta[t] * uu[t] for t in range(GROUP)], [skip * uu[t] for t in range(GROUP)]
            BC = [lanes.spread(BC_s.at[place.warpgroup, parity, pl.ds(2 * n * t, 2 * n)]) for t in range(GROUP)]
            for k in range(n):
                for t in range(GROUP):
                    h[k] = jnp.exp2(delta[t] * A2[k]) * h[k] + du[t] * BC[t][k]
                    y[t] = y[t] + h[k] * BC[t][n + k]
            for t in range(GROUP):
                y_t = (y[t] if z is None else y[t] * gate[t]).astype(u.dtype)

                def put_row(r=rows[t], y_t=y_t):
                    y_g[batch, r, here] = y_t

                place.within(at + t, put_row)
            return tuple(h), after, next_rows, later, later_rows, more_rows

        def one_chunk(c, carry):
            if keep:
                place.put_states(starts_g, lanes.pack(carry[0]) if packed else carry[0], first + c)
            start = (first + c) * chunk
            return lax.fori_loop(0, chunk // GROUP, lambda i, carry: group(start, i, carry), carry)

        h = place.states(state_g)
        if carries is not None:
            h = enter(place, A2, h, *carries_g, reverse=False)
        start = first * chunk
        rows, next_rows = place.rows(start), place.rows(start + GROUP)
        raw = read(rows)
        BC_s[place.warpgroup, lax.rem(start // GROUP, 2), :] = raw[3]
        carry = (tuple(h), prepare(start, raw), rows, read(next_rows), next_rows, place.rows(start + 2 * GROUP))
        h = lax.fori_loop(0, count, one_chunk, carry)[0]
        place.put_states(final_g, h, place.part)

    q, d = plan.sequences, plan.channels
    out = [shape(*u.shape, dtype=u.dtype), shape(q, plan.splits, n, d)]
    if keep:
        out.append(shape(q, plan.chunks, n // 2, d, dtype=jnp.int32) if packed else shape(q, plan.chunks, n, d))
    scratch = [plgpu.SMEM((plan.warpgroups, 2, GROUP * 2 * n), F32)]
    return plan.launch(kernel, tuple(out), scratch, plan.splits)(
        *given(tokens, u, dt, z, BC, A2, D, dt_bias, state, *(carries or ()))
    )

"""The selective scan's backward pass as a Mosaic GPU kernel: one channel a thread.

The chunks are visited from the last to the first, each twice. First forward from the state at its start: dz, dC, and
the state before every group of tokens, in shared memory. Then backward, a group at a time: its states once more, in
registers, from the one kept; and the adjoint. With w_t = exp(delta_t A) h_{t-1}, and dh_t the gradient of h_t,

    dh_t = C_t dy_t + exp(delta_{t+1} A) dh_{t+1}       d(delta_t u_t) = sum_n dh_t B_t
    ddelta_t = u_t d(delta_t u_t) + sum_n A dh_t w_t    dA = sum_t delta_t dh_t w_t

dB and dC are sums over channels: over lanes on the tensor cores, over a warpgroup's warps in shared memory, over
blocks of 128 channels by XLA afterwards; always in the same order.
"""

# References that are None are those of arrays that are.
# pyright: reportOptionalMemberAccess=false, reportOptionalIterable=false, reportOptionalSubscript=false

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from zigma_kernels import mosaic_lanes as lanes
from zigma_kernels.mosaic_lanes import LANES
from zigma_kernels.selective_scan.mosaic_carry import enter
from zigma_kernels.selective_scan.mosaic_plan import (
    F32,
    GROUP,
    Place,
    Plan,
    given,
    shape,
    sigmoid_of_softplus,
    softplus,
    softplus_and_sigmoid,
)

LN2 = 0.6931471805599453


def backward(plan: Plan, carries, tokens, starts, dy, dfinal, u, dt, A2, BC, D, z, dt_bias):
    """(du, ddt, dBC, dA, dD and ddt_bias, dstate, dz); dBC by 128 channels, (d / 128, b, L, 2 n); dA, dD,
    ddt_bias by sequence and part."""
    n, chunk = plan.states, plan.chunk
    groups = chunk // GROUP
    packed = u.dtype == jnp.bfloat16
    exact = u.dtype == F32

    def kernel(*refs):
        refs = iter(refs)
        tokens_g = next(refs) if tokens is not None else None
        u_g, dt_g, dy_g = (next(refs) for _ in range(3))
        z_g = next(refs) if z is not None else None
        BC_g, A_g, D_g, bias_g, starts_g, dfinal_g = (next(refs) for _ in range(6))
        carries_g = (next(refs), next(refs)) if carries is not None else None
        du_g, ddt_g, dBC_g, dA_g, dv_g, dstate_g = (next(refs) for _ in range(6))
        dz_g = next(refs) if z is not None else None
        A_s, BC_s, past_s, keep_s, u_s, groups_s, sums_s = refs
        place = Place(plan, tokens_g)
        here, batch, wg = place.channels, place.batch, place.warpgroup
        A2 = [lanes.row(A_g.at[k, here]) for k in range(n)]
        lanes.put_words(A_s.at[wg], A2)
        skip, dt_bias = lanes.row(D_g.at[here]), lanes.row(bias_g.at[here])
        first = place.part * plan.chunks_per_split
        count = jnp.minimum(plan.chunks_per_split, plan.chunks - first)

        def read(rows):
            gates = [lanes.row(z_g.at[batch, r, here]) for r in rows] if z is not None else None
            us, dts, dys = ([lanes.row(ref.at[batch, r, here]) for r in rows] for ref in (u_g, dt_g, dy_g))
            return us, dts, dys, gates, lanes.rows_of_warps(BC_g.at[batch], rows)

        def both_projections(group, m):
            """B and C of a group's tokens, four states of each."""
            at = [2 * n * t + 4 * m for t in range(GROUP)]
            B = [lanes.spread(BC_s.at[wg, group, pl.ds(i, 4)]) for i in at]
            return B, [lanes.spread(BC_s.at[wg, group, pl.ds(i + n, 4)]) for i in at]

        def fold(products, slot, half):
            """products: of GROUP tokens, the accumulators of `group_sums`."""
            for pair in range(0, GROUP, 2):
                lanes.sync_warp()
                for t in range(2):
                    lanes.put_words(groups_s.at[wg, t], products[pair + t])
                lanes.sync_warp()
                at = pl.ds(16 * half, LANES - 16 * half)
                lanes.fold_group_sums(groups_s.at[wg], sums_s.at[wg, pl.ds(slot + pair, 2), at])

        def forward_group(start, i, carry):
            h, rows, raw, next_rows = carry
            slot = i * GROUP
            at = start + slot
            BC_s[wg, i, :] = raw[4]
            lanes.sync_warpgroup()
            h = list(h)
            delta, du, dy, y, dz = [], [], [], [], []
            for t in range(GROUP):
                uu, x = raw[0][t].astype(F32), raw[1][t].astype(F32) + dt_bias
                dy_t = raw[2][t].astype(F32)
                if z is None:
                    delta_t = softplus(x)
                else:
                    gate = raw[3][t].astype(F32)
                    delta_t, s = softplus_and_sigmoid(x, gate)
                    dz.append(dy_t * s * (1.0 + gate * (1.0 - s)))
                    dy_t = dy_t * gate * s
                delta.append(place.masked(at + t, delta_t))
                dy.append(place.masked(at + t, dy_t))
                du.append(delta[t] * uu)
                y.append(skip * uu)
                keep_s[wg, 0, slot + t, :] = delta[t]
                keep_s[wg, 1, slot + t, :] = dy[t]
                u_s[wg, slot + t, :] = raw[0][t]
            next_raw = read(next_rows)
            later_rows = place.rows(at + 2 * GROUP)
            sums = [[lanes.zeros()] * 4 for _ in range(GROUP)]
            for m in range(n // 4):
                four = range(4 * m, 4 * m + 4)
                lanes.put_words(past_s.at[wg, i, pl.ds(m, 1)], [h[k] for k in four])
                B, C = both_projections(i, m)
                a = lanes.get_words(A_s.at[wg, pl.ds(m, 1)])
                products = [[] for _ in range(GROUP)]
                for k in four:
                    for t in range(GROUP):
                        h[k] = jnp.exp2(delta[t] * a[k % 4]) * h[k] + du[t] * B[t][k % 4]
                        if z is not None:
                            y[t] = y[t] + h[k] * C[t][k % 4]
                        products[t].append(h[k] * dy[t])
                for t in range(GROUP):
                    sums[t] = lanes.group_sums(sums[t], m, products[t], exact)
            if z is not None:
                for t in range(GROUP):
                    dz_t = (dz[t] * y[t]).astype(u.dtype)

                    def put(r=rows[t], dz_t=dz_t):
                        dz_g[batch, r, here] = dz_t

                    place.within(at + t, put)
            fold(sums, slot, 1)
            return tuple(h), next_rows, next_raw, later_rows

        def backward_group(start, i, carry):
            lam, dA, dD, dbias = carry
            lam, dA = list(lam), list(dA)
            group = groups - 1 - i
            slot = group * GROUP
            delta = [lanes.row(keep_s.at[wg, 0, slot + t]) for t in range(GROUP)]
            dy = [lanes.row(keep_s.at[wg, 1, slot + t]) for t in range(GROUP)]
            du = [delta[t] * lanes.row(u_s.at[wg, slot + t]).astype(F32) for t in range(GROUP)]
            sums = [[lanes.zeros()] * 4 for _ in range(GROUP)]
            d_du, d_delta = [lanes.zeros()] * GROUP, [lanes.zeros()] * GROUP
            for m in range(n // 4):
                past = lanes.get_words(past_s.at[wg, group, pl.ds(m, 1)])
                B, C = both_projections(group, m)
                a = lanes.get_words(A_s.at[wg, pl.ds(m, 1)])
                products = [[] for _ in range(GROUP)]
                for k in range(4 * m, 4 * m + 4):
                    decay = [jnp.exp2(delta[t] * a[k % 4]) for t in range(GROUP)]
                    h, w = past[k % 4], []
                    for t in range(GROUP):
                        w.append(decay[t] * h)
                        h = w[t] + du[t] * B[t][k % 4]
                    for t in reversed(range(GROUP)):
                        dh = lam[k] + C[t][k % 4] * dy[t]
                        d_du[t] = d_du[t] + dh * B[t][k % 4]
                        dhw = dh * w[t]
                        d_delta[t] = d_delta[t] + dhw * a[k % 4]
                        dA[k] = dA[k] + delta[t] * dhw
                        products[t].append(dh * du[t])
                        lam[k] = decay[t] * dh
                for t in range(GROUP):
                    sums[t] = lanes.group_sums(sums[t], m, products[t], exact)
            rows = place.rows(start + slot)
            for t in range(GROUP):
                uu = lanes.row(u_s.at[wg, slot + t]).astype(F32)
                # A2 is A log2(e)
                ddt = (d_delta[t] * LN2 + uu * d_du[t]) * sigmoid_of_softplus(delta[t])
                dD, dbias = dD + dy[t] * uu, dbias + ddt
                du_t, ddt = (delta[t] * d_du[t] + skip * dy[t]).astype(u.dtype), ddt.astype(u.dtype)

                def put(r=rows[t], du_t=du_t, ddt=ddt):
                    du_g[batch, r, here] = du_t
                    ddt_g[batch, r, here] = ddt

                place.within(start + slot + t, put)
            fold(sums, slot, 0)
            return tuple(lam), tuple(dA), dD, dbias

        def one_chunk(i, carry):
            sums, raw = carry
            c = first + count - 1 - i
            start = c * chunk
            h = place.states(starts_g, c)
            h = tuple(lanes.unpack(h) if packed else h)
            carry = h, place.rows(start), raw, place.rows(start + GROUP)
            lax.fori_loop(0, groups, lambda i, carry: forward_group(start, i, carry), carry)
            # what the chunk before needs first is read while this one's adjoint runs
            raw = read(place.rows(start - chunk))
            sums = lax.fori_loop(0, groups, lambda i, carry: backward_group(start, i, carry), sums)
            lanes.sync_warpgroup()
            for group in range(groups):
                at = start + group * GROUP

                def put(at=at, group=group):
                    sums, out = sums_s.at[wg, pl.ds(group * GROUP, GROUP)], dBC_g.at[place.column, batch]
                    lanes.add_warps(sums, out, place.rows(at), plan.length - at)

                place.within(at, put)
            return sums, raw

        lam = place.states(dfinal_g)
        if carries is not None:
            lam = enter(place, A2, lam, *carries_g, reverse=True)
        last = first + count - 1
        sums = tuple(lam), (lanes.zeros(),) * n, lanes.zeros(), lanes.zeros()
        carry = sums, read(place.rows(last * chunk))
        (lam, dA, dD, dbias), *_ = lax.fori_loop(0, count, one_chunk, carry)
        place.put_states(dA_g, dA, place.part)
        place.put_states(dstate_g, lam, place.part)
        place.put_states(dv_g, [dD, dbias], place.part)

    q, splits, d = plan.sequences, plan.splits, plan.channels
    like = shape(*u.shape, dtype=u.dtype)
    out = [
        like,
        like,
        shape(d // LANES, *u.shape[:2], 2 * n),
        shape(q, splits, n, d),
        shape(q, splits, 2, d),
        shape(q, splits, n, d),
    ]
    if z is not None:
        out.append(like)
    wgs = plan.warpgroups
    scratch = [
        plgpu.SMEM((wgs, n // 4, LANES, 4), F32),
        plgpu.SMEM((wgs, groups, GROUP * 2 * n), F32),
        plgpu.SMEM((wgs, groups, n // 4, LANES, 4), F32),
        plgpu.SMEM((wgs, 2, chunk, LANES), F32),
        plgpu.SMEM((wgs, chunk, LANES), u.dtype),
        plgpu.SMEM((wgs, 2, 1, LANES, 4), F32),
        plgpu.SMEM((wgs, chunk, LANES), F32),
    ]
    return plan.launch(kernel, tuple(out), scratch, plan.splits)(
        *given(tokens, u, dt, dy, z, BC, A2, D, dt_bias, starts, dfinal, *(carries or ()))
    )

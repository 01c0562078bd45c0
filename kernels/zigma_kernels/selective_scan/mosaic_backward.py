"""The selective scan's backward pass as a Mosaic GPU kernel: one channel a thread.

The chunks are visited from the last to the first, each twice. First forward from the state at its start: dz, dC, and
the state before every group of tokens, in shared memory. Then backward, a group at a time: its states once more, in
registers, from the one kept; and the adjoint. With w_t = exp(delta_t A) h_{t-1}, and dh_t the gradient of h_t,

    dh_t = C_t dy_t + exp(delta_{t+1} A) dh_{t+1}       d(delta_t u_t) = sum_n dh_t B_t
    ddelta_t = u_t d(delta_t u_t) + sum_n A dh_t w_t    dA = sum_t delta_t dh_t w_t

dB and dC are sums over channels: over lanes on the tensor cores; over a warpgroup's warps in shared memory, while the
next group is worked on; over blocks of 128 channels by XLA afterwards; always in the same order.
"""

# References that are None are those of arrays that are.
# pyright: reportOptionalMemberAccess=false, reportOptionalIterable=false, reportOptionalSubscript=false

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
    Place,
    Plan,
    given,
    shape,
    sigmoid_of_softplus,
    softplus,
    softplus_and_sigmoid,
)

LN2 = 0.6931471805599453


def backward(plan: Plan, tokens, starts, dy, entering, u, dt, A2, BC, D, z, dt_bias):
    """(du, ddt, dBC, dA, dD and ddt_bias, dstate, dz); dBC by 128 channels, (d / 128, b, L, 2 n); dA, dD,
    ddt_bias by sequence and part.

    entering: the gradient of the state that each part ends with (q, splits, n, d).
    """
    n, chunk = plan.states, plan.chunk
    groups = chunk // GROUP
    packed = u.dtype == jnp.bfloat16
    exact = not packed

    def kernel(*refs):
        refs = iter(refs)
        tokens_g = next(refs) if tokens is not None else None
        u_g, dt_g, dy_g = (next(refs) for _ in range(3))
        z_g = next(refs) if z is not None else None
        BC_g, A_g, D_g, bias_g, starts_g, entering_g = (next(refs) for _ in range(6))
        du_g, ddt_g, dBC_g, dA_g, dv_g, dstate_g = (next(refs) for _ in range(6))
        dz_g = next(refs) if z is not None else None
        found_s, BC_s, *own = refs
        place = Place(plan, tokens_g, found_s)
        # of this warpgroup: rows of a chunk and of the next; of a group and of the next; what a chunk's adjoint needs
        u_s, x_s, past_s, keep_s, sums_s = (ref.at[place.warpgroup] for ref in own)
        here, batch = place.channels, place.batch
        A2 = [lanes.row(A_g.at[k, here]) for k in range(n)]
        skip, dt_bias = lanes.row(D_g.at[here]), lanes.row(bias_g.at[here])
        first = place.part * plan.chunks_per_split
        count = jnp.minimum(plan.chunks_per_split, plan.chunks - first)
        last = first + count - 1

        def fetch(g):
            x, of_chunk = x_s.at[g & 1], g & (2 * groups - 1)
            pairs = [(ref, x.at[j]) for j, ref in enumerate(given(dt_g, dy_g, z_g))]
            place.fetch(g, *pairs, (u_g, u_s.at[of_chunk]), (BC_g, BC_s.at[place.warpgroup, of_chunk]))

        def both_projections(g, m):
            """B and C of a group's tokens, four states of each."""
            of_group = BC_s.at[:, g & (2 * groups - 1)]
            at = [2 * n * t + 4 * m for t in range(GROUP)]
            B = [lanes.spread(of_group.at[:, pl.ds(i, 4)]) for i in at]
            return B, [lanes.spread(of_group.at[:, pl.ds(i + n, 4)]) for i in at]

        def add_sums(g, half):
            """Writes dB (half 0) or dC (half n) of group g, if that is one of ours."""
            count = jnp.where(g < (last + 1) * groups, plan.length - g * GROUP, 0)
            lanes.add_group_sums(sums_s, dBC_g.at[place.column, batch], place.row(g), half, count)

        def put_sums(sums):
            lanes.sync_warpgroup()  # the last ones have been read
            for t in range(GROUP):
                lanes.put_words(sums_s.at[t], sums[t])

        def forward_group(c, i, h):
            g, start = c * groups + i, c * groups
            at = g * GROUP
            lanes.await_copies(0)
            lanes.sync_warpgroup()
            place.find(g - groups)
            fetch(jnp.where(i == groups - 1, start - groups, g + 1))  # the next to be visited forward
            add_sums(jnp.where(i == 0, start + groups, g - 1), jnp.where(i == 0, 0, n))
            rows = place.rows(g)
            h = list(h)
            delta, du, dy, y, dz = [], [], [], [], []
            for t in range(GROUP):
                lane = pl.ds(t * LANES, LANES)
                uu = lanes.row(u_s.at[g & (2 * groups - 1), lane]).astype(F32)
                x, dy_t, *gate = (lanes.row(x_s.at[g & 1, j, lane]).astype(F32) for j in range(x_s.shape[1]))
                if z is None:
                    delta_t = softplus(x + dt_bias)
                else:
                    delta_t, s = softplus_and_sigmoid(x + dt_bias, gate[0])
                    dz.append(dy_t * s * (1.0 + gate[0] * (1.0 - s)))
                    dy_t = dy_t * gate[0] * s
                delta.append(place.masked(at + t, delta_t))
                dy.append(place.masked(at + t, dy_t))
                du.append(delta[t] * uu)
                y.append(skip * uu)
            lanes.put_words(keep_s.at[i], delta + dy)
            sums = [[lanes.zeros()] * 4 for _ in range(GROUP)]
            for m in range(n // 4):
                four = range(4 * m, 4 * m + 4)
                lanes.put_words(past_s.at[i, pl.ds(m, 1)], [h[k] for k in four])
                B, C = both_projections(g, m)
                products = [[] for _ in range(GROUP)]
                for k in four:
                    for t in range(GROUP):
                        h[k] = jnp.exp2(delta[t] * A2[k]) * h[k] + du[t] * B[t][k % 4]
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
            put_sums(sums)
            return tuple(h)

        def backward_group(c, i, carry):
            lam, dA, dD, dbias = carry
            lam, dA = list(lam), list(dA)
            group = groups - 1 - i
            g = c * groups + group
            lanes.sync_warpgroup()
            add_sums(jnp.where(i == 0, g, g + 1), jnp.where(i == 0, n, 0))
            lane = [pl.ds(t * LANES, LANES) for t in range(GROUP)]
            kept = lanes.get_words(keep_s.at[group])
            delta, dy = kept[:GROUP], kept[GROUP:]
            du = [delta[t] * lanes.row(u_s.at[g & (2 * groups - 1), lane[t]]).astype(F32) for t in range(GROUP)]
            sums = [[lanes.zeros()] * 4 for _ in range(GROUP)]
            d_du, d_delta = [lanes.zeros()] * GROUP, [lanes.zeros()] * GROUP
            for m in range(n // 4):
                past = lanes.get_words(past_s.at[group, pl.ds(m, 1)])
                B, C = both_projections(g, m)
                products = [[] for _ in range(GROUP)]
                for k in range(4 * m, 4 * m + 4):
                    decay = [jnp.exp2(delta[t] * A2[k]) for t in range(GROUP)]
                    h, w = past[k % 4], []
                    for t in range(GROUP):
                        w.append(decay[t] * h)
                        h = w[t] + du[t] * B[t][k % 4]
                    for t in reversed(range(GROUP)):
                        dh = lam[k] + C[t][k % 4] * dy[t]
                        d_du[t] = d_du[t] + dh * B[t][k % 4]
                        dhw = dh * w[t]
                        d_delta[t] = d_delta[t] + dhw * A2[k]
                        dA[k] = dA[k] + delta[t] * dhw
                        products[t].append(dh * du[t])
                        lam[k] = decay[t] * dh
                for t in range(GROUP):
                    sums[t] = lanes.group_sums(sums[t], m, products[t], exact)
            rows = place.rows(g)
            for t in range(GROUP):
                uu = lanes.row(u_s.at[g & (2 * groups - 1), lane[t]]).astype(F32)
                # A2 is A log2(e)
                ddt = (d_delta[t] * LN2 + uu * d_du[t]) * sigmoid_of_softplus(delta[t])
                dD, dbias = dD + dy[t] * uu, dbias + ddt
                du_t, ddt = (delta[t] * d_du[t] + skip * dy[t]).astype(u.dtype), ddt.astype(u.dtype)

                def put(r=rows[t], du_t=du_t, ddt=ddt):
                    du_g[batch, r, here] = du_t
                    ddt_g[batch, r, here] = ddt

                place.within(g * GROUP + t, put)
            put_sums(sums)
            return tuple(lam), tuple(dA), dD, dbias

        def one_chunk(i, sums):
            c = last - i
            h = place.states(starts_g, c)
            h = tuple(lanes.unpack(h) if packed else h)
            lax.fori_loop(0, groups, lambda i, h: forward_group(c, i, h), h)
            return lax.fori_loop(0, groups, lambda i, sums: backward_group(c, i, sums), sums)

        lam = place.states(entering_g, place.part)
        place.find_first([last * groups + i for i in range(groups)])
        fetch(last * groups)
        sums = tuple(lam), (lanes.zeros(),) * n, lanes.zeros(), lanes.zeros()
        lam, dA, dD, dbias = lax.fori_loop(0, count, one_chunk, sums)
        lanes.sync_warpgroup()
        add_sums(first * groups, 0)
        lanes.await_copies(0)
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
        plgpu.SMEM((wgs, FOUND, GROUP), jnp.int32),
        plgpu.SMEM((wgs, 2 * groups, GROUP * 2 * n), F32),
        plgpu.SMEM((wgs, 2 * groups, GROUP * LANES), u.dtype),
        plgpu.SMEM((wgs, 2, 2 + (z is not None), GROUP * LANES), u.dtype),
        plgpu.SMEM((wgs, groups, n // 4, LANES, 4), F32),
        plgpu.SMEM((wgs, groups, 2, LANES, 4), F32),
        plgpu.SMEM((wgs, GROUP, 1, LANES, 4), F32),
    ]
    return plan.launch(kernel, tuple(out), scratch, splits)(
        *given(tokens, u, dt, dy, z, BC, A2, D, dt_bias, starts, entering)
    )

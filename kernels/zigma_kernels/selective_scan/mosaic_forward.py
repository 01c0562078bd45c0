"""The selective scan's forward pass as a Mosaic GPU kernel: one channel a thread, its n states in registers.

While a group of tokens is scanned, the elementwise work of the next is done, and the rows of those after it are on
their way to shared memory.
"""

# References that are None are those of arrays that are.
# pyright: reportOptionalMemberAccess=false, reportOptionalIterable=false

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


def forward(plan: Plan, keep, tokens, u, dt, A2, BC, D, z, dt_bias, entering):
    """y, the state each part ends with (q, splits, n, d), and with `keep` those at the chunks' starts.

    entering: the state that each part begins with (q, splits, n, d).
    """
    n, groups = plan.states, plan.chunk // GROUP
    packed = u.dtype == jnp.bfloat16

    def kernel(*refs):
        refs = iter(refs)
        tokens_g = next(refs) if tokens is not None else None
        u_g, dt_g = next(refs), next(refs)
        z_g = next(refs) if z is not None else None
        BC_g, A_g, D_g, bias_g, entering_g = (next(refs) for _ in range(5))
        y_g, final_g = next(refs), next(refs)
        starts_g = next(refs) if keep else None
        x_s, BC_s, found_s = refs
        place = Place(plan, tokens_g, found_s)
        here, batch = place.channels, place.batch
        x_s, own_BC_s = x_s.at[place.warpgroup], BC_s.at[place.warpgroup]
        A2 = [lanes.row(A_g.at[k, here]) for k in range(n)]
        skip, dt_bias = lanes.row(D_g.at[here]), lanes.row(bias_g.at[here])
        first = place.part * plan.chunks_per_split
        count = jnp.minimum(plan.chunks_per_split, plan.chunks - first)
        begin = first * groups

        def fetch(g):
            x = x_s.at[g & (STAGES - 1)]
            pairs = [(ref, x.at[j]) for j, ref in enumerate(given(u_g, dt_g, z_g))]
            place.fetch(g, *pairs, (BC_g, own_BC_s.at[g & (STAGES - 1)]))

        def prepare(g):
            """(delta, u, gate) of a group's tokens."""
            rows = x_s.at[g & (STAGES - 1)]
            deltas, us, gates = [], [], []
            for t in range(GROUP):
                lane = pl.ds(t * LANES, LANES)
                us.append(lanes.row(rows.at[0, lane]).astype(F32))
                x, gate = lanes.row(rows.at[1, lane]).astype(F32) + dt_bias, None
                if z is None:
                    delta = softplus(x)
                else:
                    gate = lanes.row(rows.at[2, lane]).astype(F32)
                    delta, s = softplus_and_sigmoid(x, gate)
                    gate = gate * s
                deltas.append(place.masked(g * GROUP + t, delta))
                gates.append(gate)
            return tuple(deltas), tuple(us), tuple(gates)

        def group(i, carry):
            h, (delta, uu, gate) = carry
            g = begin + i
            lanes.await_copies(1)  # of all batches but the last: the rows of g + 1, and where those of g + 3 lie
            lanes.sync_warpgroup()
            place.find(g + 5)
            fetch(g + 3)
            rows, after = place.rows(g), prepare(g + 1)
            if keep:

                def put_start(h=h):
                    place.put_states(starts_g, lanes.pack(h) if packed else h, g // groups)

                pl.when(lax.rem(g, groups) == 0)(put_start)
            h = list(h)
            du, y = [delta[t] * uu[t] for t in range(GROUP)], [skip * uu[t] for t in range(GROUP)]
            BC = [lanes.spread(BC_s.at[:, g & (STAGES - 1), pl.ds(2 * n * t, 2 * n)]) for t in range(GROUP)]
            for k in range(n):
                for t in range(GROUP):
                    h[k] = jnp.exp2(delta[t] * A2[k]) * h[k] + du[t] * BC[t][k]
                    y[t] = y[t] + h[k] * BC[t][n + k]
            for t in range(GROUP):
                y_t = (y[t] if z is None else y[t] * gate[t]).astype(u.dtype)

                def put_row(r=rows[t], y_t=y_t):
                    y_g[batch, r, here] = y_t

                place.within(g * GROUP + t, put_row)
            return tuple(h), after

        place.find_first([begin + i for i in range(5)])
        for i in range(3):
            fetch(begin + i)
        h = place.states(entering_g, place.part)
        lanes.await_copies(2)  # the first group's rows
        lanes.sync_warpgroup()
        h = lax.fori_loop(0, count * groups, group, (tuple(h), prepare(begin)))[0]
        lanes.await_copies(0)
        place.put_states(final_g, h, place.part)

    q, d = plan.sequences, plan.channels
    out = [shape(*u.shape, dtype=u.dtype), shape(q, plan.splits, n, d)]
    if keep:
        out.append(shape(q, plan.chunks, n // 2, d, dtype=jnp.int32) if packed else shape(q, plan.chunks, n, d))
    scratch = [
        plgpu.SMEM((plan.warpgroups, STAGES, 2 + (z is not None), GROUP * LANES), u.dtype),
        plgpu.SMEM((plan.warpgroups, STAGES, GROUP * 2 * n), F32),
        plgpu.SMEM((plan.warpgroups, FOUND, GROUP), jnp.int32),
    ]
    return plan.launch(kernel, tuple(out), scratch, plan.splits)(*given(tokens, u, dt, z, BC, A2, D, dt_bias, entering))

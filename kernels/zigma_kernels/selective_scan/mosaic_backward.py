"""The selective scan's backward pass as a Mosaic GPU kernel: one channel a lane."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from zigma_kernels import mosaic_lanes as lanes
from zigma_kernels.mosaic_lanes import LANES
from zigma_kernels.selective_scan.mosaic_forward import F32, PARAMS, sigmoid, softplus

GROUP = 2  # tokens read ahead
LN2 = 0.6931471805599453


def sigmoid_of_softplus(delta):
    """sigmoid(x) from softplus(x): 1 - exp(-delta), accurate where it is small."""
    small = delta * (1.0 - delta * (1 / 2 - delta * (1 / 6 - delta * (1 / 24 - delta * (1 / 120)))))
    return jnp.where(delta < 0.1, small, 1.0 - jnp.exp(-delta))


def backward(tokens, starts, dy, dfinal, u, dt, A2, BC, D, z, bias, *, length, segments, splits, chunk, unroll=1):
    b, L, d = u.shape
    n = A2.shape[0]
    ragged = length % chunk != 0
    chunks = -(-length // chunk)
    per_split = -(-chunks // splits)
    groups = chunk // GROUP
    gated, ordered = z is not None, tokens is not None
    words = starts.shape[2]
    packed = words != n
    word_type = starts.dtype
    exact = u.dtype == F32

    def kernel(*refs):
        refs = iter(refs)
        tokens_g = next(refs) if ordered else None
        u_g, dt_g, dy_g = next(refs), next(refs), next(refs)
        z_g = next(refs) if gated else None
        bc_g, a_g, d_g, bias_g, starts_g, dfinal_g, du_g, ddt_g, dbc_g, da_g, dv_g, dh0_g = (next(refs) for _ in range(12))
        dz_g = next(refs) if gated else None
        bc_s, hist_s, keep_s, u_s, groups_s, sums_s = refs
        q, s, j = lax.axis_index("q"), lax.axis_index("s"), lax.axis_index("j")
        batch, segment = q // segments, q % segments
        here = pl.ds(j * LANES, LANES)
        a = [lanes.row(a_g.at[k, here]) for k in range(n)]
        skip, dt_bias = lanes.row(d_g.at[here]), lanes.row(bias_g.at[here])
        first = s * per_split
        count = jnp.minimum(per_split, chunks - first)
        end = length - 1

        def indices(i, count=GROUP):
            at = [jnp.clip(i + t, 0, end) + segment * length for t in range(count)]
            return tuple(tokens_g[p] for p in at) if ordered else tuple(at)

        def read(rows):
            return tuple(
                (
                    lanes.row(u_g.at[batch, r, here]),
                    lanes.row(dt_g.at[batch, r, here]),
                    lanes.row(dy_g.at[batch, r, here]),
                    lanes.row(z_g.at[batch, r, here]) if gated else None,
                    lanes.own_column(bc_g.at[batch, r]),
                )
                for r in rows
            )

        def guarded(i, put):
            pl.when(i < length)(put) if ragged else put()

        def recompute(start, i, carry):
            h, rows, raw, next_rows = carry
            at = start + i * GROUP
            for t in range(GROUP):
                bc_s[i * GROUP + t, :] = raw[t][4]
            lanes.sync_warp()
            next_raw = read(next_rows)
            later_rows = indices(at + 2 * GROUP)
            h = list(h)
            for t in range(GROUP):
                slot = i * GROUP + t
                uu, x, g = raw[t][0].astype(F32), raw[t][1].astype(F32) + dt_bias, raw[t][2].astype(F32)
                delta = softplus(x)
                if ragged:
                    delta = jnp.where(at + t < length, delta, 0.0)
                    g = jnp.where(at + t < length, g, 0.0)
                gate = 1.0
                if gated:
                    zz = raw[t][3].astype(F32)
                    sig = sigmoid(zz)
                    gate = zz * sig
                grad = g * gate if gated else g
                bc = lanes.shared_by_warp(bc_s.at[slot], 2 * n)
                du, y, past, products = delta * uu, skip * uu, [], []
                for k in range(n):
                    w = jnp.exp2(delta * a[k]) * h[k]
                    past.append(w)
                    h[k] = w + du * bc[k]
                    if gated:
                        y = y + h[k] * bc[n + k]
                    products.append(h[k] * grad)
                lanes.put_words(hist_s.at[slot], lanes.pack(past) if packed else past)
                lanes.put_group_sums(groups_s.at[t], products, exact)
                keep_s[0, slot, :] = delta
                keep_s[1, slot, :] = grad
                u_s[slot, :] = raw[t][0]
                if gated:
                    dz = (g * y * sig * (1.0 + zz * (1.0 - sig))).astype(u.dtype)

                    def put(r=rows[t], dz=dz):
                        dz_g[batch, r, here] = dz

                    guarded(at + t, put)
            lanes.sync_warp()
            lanes.fold_group_sums(groups_s, sums_s.at[pl.ds(i * GROUP, GROUP), pl.ds(16, 112)])
            return tuple(h), next_rows, next_raw, later_rows

        def adjoint(start, i, carry):
            lam, dA, dD, dbias = carry
            lam, dA = list(lam), list(dA)
            base = chunk - GROUP - i * GROUP
            rows = indices(start + base)
            for t in reversed(range(GROUP)):
                slot = base + t
                uu, delta, g = lanes.row(u_s.at[slot]).astype(F32), lanes.row(keep_s.at[0, slot]), lanes.row(keep_s.at[1, slot])
                past = lanes.get_words(hist_s.at[slot], words, word_type)
                past = lanes.unpack(past) if packed else past
                bc = lanes.shared_by_warp(bc_s.at[slot], 2 * n)
                du_in, d_du, d_delta, products = delta * uu, lanes.zeros(), lanes.zeros(), []
                for k in range(n):
                    l = lam[k] + bc[n + k] * g
                    d_du = d_du + l * bc[k]
                    lw = l * past[k]
                    d_delta = d_delta + lw * a[k]  # a carries log2(e)
                    dA[k] = dA[k] + delta * lw
                    products.append(l * du_in)
                    lam[k] = jnp.exp2(delta * a[k]) * l
                lanes.put_group_sums(groups_s.at[t], products, exact)
                ddt = (d_delta * LN2 + uu * d_du) * sigmoid_of_softplus(delta)
                du = (delta * d_du + skip * g).astype(u.dtype)
                dD, dbias = dD + g * uu, dbias + ddt
                ddt = ddt.astype(u.dtype)

                def put(r=rows[t], du=du, ddt=ddt):
                    du_g[batch, r, here] = du
                    ddt_g[batch, r, here] = ddt

                guarded(start + slot, put)
            lanes.sync_warp()
            lanes.fold_group_sums(groups_s, sums_s.at[pl.ds(base, GROUP)])
            return tuple(lam), tuple(dA), dD, dbias

        def load_state(c):
            return tuple(lanes.row(starts_g.at[q, jnp.maximum(c, 0), k, here]) for k in range(words))

        def one_chunk(i, carry):
            sums, state, rows, raw, next_rows = carry
            c = first + count - 1 - i
            start = c * chunk
            h = tuple(lanes.unpack(state)) if packed else state
            carry = (h, rows, raw, next_rows)
            lax.fori_loop(0, groups, lambda i, carry: recompute(start, i, carry), carry)
            rows = indices(start - chunk)
            state, raw, next_rows = load_state(c - 1), read(rows), indices(start - chunk + GROUP)
            sums = lax.fori_loop(0, groups, lambda i, carry: adjoint(start, i, carry), sums)
            lanes.sync_block()
            for r in range(chunk // 4):
                at = start + r * 4
                out = indices(at, 4)
                def put(r=r, out=out):
                    lanes.add_warps(sums_s.at[pl.ds(r * 4, 4)], dbc_g.at[j, batch], out)
                if ragged:  # clamped rows come after, never before, the one they stand for
                    pl.when(at < length)(put)
                else:
                    put()
            lanes.sync_block()
            return sums, state, rows, raw, next_rows

        last = first + count - 1
        rows = indices(last * chunk)
        sums = (
            tuple(lanes.row(dfinal_g.at[q, s, k, here]) for k in range(n)),
            (lanes.zeros(),) * n,
            lanes.zeros(),
            lanes.zeros(),
        )
        carry = (sums, load_state(last), rows, read(rows), indices(last * chunk + GROUP))
        (lam, dA, dD, dbias), *_ = lax.fori_loop(0, count, one_chunk, carry)
        for k in range(n):
            da_g[q, s, k, here] = dA[k]
            dh0_g[q, s, k, here] = lam[k]
        dv_g[q, s, 0, here] = dD
        dv_g[q, s, 1, here] = dbias

    q = b * segments
    like, f32 = jax.ShapeDtypeStruct(u.shape, u.dtype), lambda *shape: jax.ShapeDtypeStruct(shape, F32)
    out = [like, like, f32(d // LANES, b, L, 2 * n), f32(q, splits, n, d), f32(q, splits, 2, d), f32(q, splits, n, d)]
    if gated:
        out.append(like)
    args = [x for x in (tokens, u, dt, dy, z, BC, A2, D, bias, starts, dfinal) if x is not None]
    return plgpu.kernel(
        kernel,
        out_type=tuple(out),
        grid=(q, splits, d // LANES),
        grid_names=("q", "s", "j"),
        scratch_types=[
            plgpu.SMEM((chunk, LANES), F32),
            plgpu.SMEM((chunk, words // 4, LANES, 4), word_type),
            plgpu.SMEM((2, chunk, LANES), F32),
            plgpu.SMEM((chunk, LANES), u.dtype),
            plgpu.SMEM((GROUP, 4, LANES), F32),
            plgpu.SMEM((chunk, LANES), F32),
        ],
        compiler_params=PARAMS,
    )(*args)

"""The selective scan's forward pass as a Mosaic GPU kernel: one channel a lane, its n states in registers."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from zigma_kernels import mosaic_lanes as lanes
from zigma_kernels.mosaic_lanes import LANES

GROUP = 4  # tokens read ahead
PARAMS = plgpu.CompilerParams(
    approx_math=True, unsafe_no_auto_barriers=True, lowering_semantics=plgpu.LoweringSemantics.Lane
)
F32 = jnp.float32


def softplus(x):
    """log(1 + exp(x)), accurate where it is small: 2 atanh(p / (2 + p)) for p = exp(-|x|)."""
    p = jnp.exp(-jnp.abs(x))
    s = p / (2.0 + p)
    t = s * s
    series = 1.0 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9 + t * (1 / 11 + t * (1 / 13))))))
    return jnp.maximum(x, 0.0) + 2.0 * s * series


def sigmoid(x):
    return 1.0 / (1.0 + jnp.exp(-x))


def forward(tokens, u, dt, A2, BC, D, z, bias, h0, *, length, segments, splits, chunk, save):
    b, L, d = u.shape
    n = A2.shape[0]
    ragged = length % chunk != 0
    chunks = -(-length // chunk)
    per_split = -(-chunks // splits)
    groups = chunk // GROUP
    gated, ordered = z is not None, tokens is not None
    words = n // 2 if u.dtype == jnp.bfloat16 else n

    def kernel(*refs):
        refs = iter(refs)
        tokens_g = next(refs) if ordered else None
        u_g, dt_g = next(refs), next(refs)
        z_g = next(refs) if gated else None
        bc_g, a_g, d_g, bias_g, h0_g, y_g, final_g = (next(refs) for _ in range(7))
        starts_g = next(refs) if save else None
        bc_s = next(refs)
        q, s, j = lax.axis_index("q"), lax.axis_index("s"), lax.axis_index("j")
        batch, segment = q // segments, q % segments
        here = pl.ds(j * LANES, LANES)
        a = [lanes.row(a_g.at[k, here]) for k in range(n)]
        skip, dt_bias = lanes.row(d_g.at[here]), lanes.row(bias_g.at[here])
        first = s * per_split
        count = jnp.minimum(per_split, chunks - first)
        end = length - 1

        def indices(i):
            at = [i + t for t in range(GROUP)]
            if ragged or True:
                at = [jnp.minimum(p, end) for p in at]
            at = [segment * length + p for p in at]
            return tuple(tokens_g[p] for p in at) if ordered else tuple(at)

        def read(rows):
            return tuple(
                (
                    lanes.row(u_g.at[batch, r, here]),
                    lanes.row(dt_g.at[batch, r, here]),
                    lanes.row(z_g.at[batch, r, here]) if gated else None,
                    lanes.own_column(bc_g.at[batch, r]),
                )
                for r in rows
            )

        def group(i, carry):
            start, (h, rows, raw, next_rows) = carry
            at = start + i * GROUP
            parity = lax.rem(i, 2)
            for t in range(GROUP):
                bc_s[parity, t, :] = raw[t][3]
            lanes.sync_warp()
            next_raw = read(next_rows)
            later_rows = indices(at + 2 * GROUP)
            h = list(h)
            for t in range(GROUP):
                uu, x = raw[t][0].astype(F32), raw[t][1].astype(F32) + dt_bias
                delta = softplus(x)
                if ragged:
                    delta = jnp.where(at + t < length, delta, 0.0)
                bc = lanes.shared_by_warp(bc_s.at[parity, t], 2 * n)
                du, y = delta * uu, skip * uu
                for k in range(n):
                    h[k] = jnp.exp2(delta * a[k]) * h[k] + du * bc[k]
                    y = y + h[k] * bc[n + k]
                if gated:
                    zz = raw[t][2].astype(F32)
                    y = y * zz * sigmoid(zz)
                y = y.astype(u.dtype)

                def put(r=rows[t], y=y):
                    y_g[batch, r, here] = y

                if ragged:
                    pl.when(at + t < length)(put)
                else:
                    put()
            return start, (tuple(h), next_rows, next_raw, later_rows)

        def one_chunk(c, carry):
            if save:
                h = carry[0]
                kept = lanes.pack(h) if words != n else h
                for k in range(words):
                    starts_g[q, first + c, k, here] = kept[k]
            start = (first + c) * chunk
            return lax.fori_loop(0, groups, group, (start, carry))[1]

        rows = indices(first * chunk)
        carry = (
            tuple(lanes.row(h0_g.at[q, s, k, here]) for k in range(n)),
            rows,
            read(rows),
            indices(first * chunk + GROUP),
        )
        h = lax.fori_loop(0, count, one_chunk, carry)[0]
        for k in range(n):
            final_g[q, s, k, here] = h[k]

    q = b * segments
    out = [jax.ShapeDtypeStruct(u.shape, u.dtype), jax.ShapeDtypeStruct((q, splits, n, d), F32)]
    if save:
        out.append(jax.ShapeDtypeStruct((q, chunks, words, d), jnp.int32 if words != n else F32))
    args = [x for x in (tokens, u, dt, z, BC, A2, D, bias, h0) if x is not None]
    return plgpu.kernel(
        kernel,
        out_type=tuple(out),
        grid=(q, splits, d // LANES),
        grid_names=("q", "s", "j"),
        scratch_types=[plgpu.SMEM((2, GROUP, LANES), F32)],
        compiler_params=PARAMS,
    )(*args)

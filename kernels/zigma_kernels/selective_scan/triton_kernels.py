# type: ignore  # Triton only looks like Python
# ruff: noqa: RUF005  (it knows no unpacking)
"""The Triton kernels of the selective scan: `triton_scan` calls them.

A program is one warp. It goes through one sequence (a segment of one sample) for BLOCK channels, its state
(N, BLOCK) in registers: since states lie in memory as (d, N), Triton gives each lane 4 states of 4 channels (when
there are 16 and 32), so that sums over states and sums over channels (dB, dC) cost few steps across lanes. Tokens
go by tiles of TILE, written out; the rows of the next tile are on their way while one is worked on. Rows lie in
raster order and are read and written at the index of the visited token. Past a sequence's end, steps have size 0.

The forward kernel saves the state before every CHUNK tokens. The backward kernel goes through the chunks from
the last to the first: it recomputes the state before each tile into `scratch` (the program's own, small enough
to stay in cache), then for each tile, from the last, recomputes its states into registers and runs the adjoint
(`xla` has its equations) through them.

Pointers: u, dt, z, y and their gradients (b, L, d); B, C (b, L, N); A (d, N) float32; D, dt_bias (d,) float32;
state, final, dfinal, dstate, dA (sequences, d, N) float32; starts (sequences, chunks, d, N) float32;
dB, dC (blocks, b, L, N) float32; dD, ddt_bias (sequences, d) float32; tokens (L,) int32.
"""

import inspect

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


def jit(function):
    """triton.jit of the function itself: an import hook that checks types may have wrapped it."""
    return triton.jit(inspect.unwrap(function))


@jit
def forward_kernel(
    tokens, u, dt, z, B, C, A, D, dt_bias, state, d, length,
    y, final, starts,
    N: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    RASTER: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    sequence, first, channel, inside, n, corner, chunks = _place(d, length, BLOCK, N, CHUNK)
    u, dt, z, y, B, C = u + first * d, dt + first * d, z + first * d, y + first * d, B + first * N, C + first * N
    D, dt_bias = tl.load(D + channel, inside, 0.0), tl.load(dt_bias + channel, inside, 0.0)
    A = tl.load(A + corner, inside[None, :], 0.0) * LOG2E
    h = tl.load(state + sequence * N * d + corner, inside[None, :], 0.0)

    ahead = _rows((u, dt, z), tokens, 0, length, d, channel, TILE, RASTER)
    for chunk in range(chunks):
        tl.store(starts + (sequence * chunks + chunk) * N * d + corner, h, inside[None, :])
        for start in range(chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, length), TILE):
            rows = ahead
            ahead = _rows((u, dt, z), tokens, start + TILE, length, d, channel, TILE, RASTER)
            states = ()
            for i in tl.static_range(TILE):
                at = rows[i][0] * N + n
                states = states + ((tl.load(B + at), tl.load(C + at)),)
            for i in tl.static_range(TILE):
                t, u_t, dt_t, z_t = rows[i]
                B_t, C_t = states[i]
                real = start + i < length
                delta = tl.where(real, _softplus(dt_t.to(tl.float32) + dt_bias), 0.0)
                u_t = u_t.to(tl.float32)
                h = tl.exp2(delta[None, :] * A) * h + (delta * u_t)[None, :] * B_t[:, None]
                y_t = tl.sum(h * C_t[:, None], 0) + D * u_t
                if GATED:
                    z_t = z_t.to(tl.float32)
                    y_t *= z_t * _sigmoid(z_t)
                tl.store(y + (t * d + channel), y_t, inside & real)

    tl.store(final + sequence * N * d + corner, h, inside[None, :])


@jit
def backward_kernel(
    tokens, u, dt, z, B, C, A, D, dt_bias, starts, dy, dfinal, d, length,
    du, ddt, dz, dB, dC, dA, dD, ddt_bias, dstate, scratch,
    N: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    RASTER: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    sequence, first, channel, inside, n, corner, chunks = _place(d, length, BLOCK, N, CHUNK)
    u, dt, z, dy, B, C = u + first * d, dt + first * d, z + first * d, dy + first * d, B + first * N, C + first * N
    du, ddt, dz = du + first * d, ddt + first * d, dz + first * d
    block = tl.program_id(1).to(tl.int64)
    partial = (block * tl.num_programs(0) * tl.num_programs(2) * length + first) * N
    dB, dC = dB + partial, dC + partial
    scratch += (sequence * tl.num_programs(1) + block) * (CHUNK * N * BLOCK // TILE)
    spot = n[:, None] + tl.arange(0, BLOCK)[None, :] * N
    D, dt_bias = tl.load(D + channel, inside, 0.0), tl.load(dt_bias + channel, inside, 0.0)
    A = tl.load(A + corner, inside[None, :], 0.0) * LOG2E
    g = tl.load(dfinal + sequence * N * d + corner, inside[None, :], 0.0)
    sum_dA, sum_dD, sum_ddt = tl.zeros_like(A), tl.zeros_like(D), tl.zeros_like(D)

    for c in range(chunks):
        chunk = chunks - 1 - c
        tiles = tl.cdiv(tl.minimum(CHUNK, length - chunk * CHUNK), TILE)

        h = tl.load(starts + (sequence * chunks + chunk) * N * d + corner, inside[None, :], 0.0)
        ahead = _rows((u, dt), tokens, chunk * CHUNK, length, d, channel, TILE, RASTER)
        for tile in range(tiles):
            tl.store(scratch + tile * N * BLOCK + spot, h)
            start = chunk * CHUNK + tile * TILE
            rows = ahead
            ahead = _rows((u, dt), tokens, start + TILE, length, d, channel, TILE, RASTER)
            for i in tl.static_range(TILE):
                t, u_t, dt_t = rows[i]
                B_t = tl.load(B + (t * N + n))
                delta = tl.where(start + i < length, _softplus(dt_t.to(tl.float32) + dt_bias), 0.0)
                h = tl.exp2(delta[None, :] * A) * h + (delta * u_t.to(tl.float32))[None, :] * B_t[:, None]
        tl.debug_barrier()  # what one lane wrote another may read

        ahead = _rows((u, dt, z, dy), tokens, chunk * CHUNK + (tiles - 1) * TILE, length, d, channel, TILE, RASTER)
        for j in range(tiles):
            tile = tiles - 1 - j
            start = chunk * CHUNK + tile * TILE
            h = tl.load(scratch + tile * N * BLOCK + spot)
            rows = ahead
            ahead = _rows((u, dt, z, dy), tokens, start - TILE, length, d, channel, TILE, RASTER)
            states, kept = (), ()
            for i in tl.static_range(TILE):
                at = rows[i][0] * N + n
                states = states + ((tl.load(B + at), tl.load(C + at)),)
            for i in tl.static_range(TILE):
                t, u_t, dt_t, z_t, dy_t = rows[i]
                u_t, dt_t, z_t, dy_t = u_t.to(tl.float32), dt_t.to(tl.float32), z_t.to(tl.float32), dy_t.to(tl.float32)
                at = t * d + channel
                B_t, C_t = states[i]
                real = start + i < length
                delta = tl.where(real, _softplus(dt_t + dt_bias), 0.0)
                dy_t = tl.where(real, dy_t, 0.0)
                before, decay = h, tl.exp2(delta[None, :] * A)
                h = decay * h + (delta * u_t)[None, :] * B_t[:, None]
                if GATED:
                    gate = _sigmoid(z_t)
                    y_t = tl.sum(h * C_t[:, None], 0) + D * u_t
                    tl.store(dz + at, dy_t * y_t * gate * (1.0 + z_t * (1.0 - gate)), inside & real)
                    dy_t *= z_t * gate
                tl.store(dC + (t * N + n), tl.sum(h * dy_t[None, :], 1), real)
                kept = kept + ((before, decay, delta, u_t, dt_t, dy_t),)
            for i in tl.static_range(TILE - 1, -1, -1):
                before, decay, delta, u_t, dt_t, dy_t = kept[i]
                t = rows[i][0]
                at = t * d + channel
                B_t, C_t = tl.load(B + (t * N + n)), tl.load(C + (t * N + n))
                real = start + i < length
                dh = g + C_t[:, None] * dy_t[None, :]
                tl.store(dB + (t * N + n), tl.sum(dh * (delta * u_t)[None, :], 1), real)
                dx = tl.sum(dh * B_t[:, None], 0)
                g = decay * dh
                p = g * before
                sum_dA += delta[None, :] * p
                ddt_t = (LN2 * tl.sum(p * A, 0) + u_t * dx) * _sigmoid(dt_t + dt_bias)
                ddt_t = tl.where(real, ddt_t, 0.0)
                sum_ddt += ddt_t
                sum_dD += dy_t * u_t
                tl.store(du + at, delta * dx + D * dy_t, inside & real)
                tl.store(ddt + at, ddt_t, inside & real)
        tl.debug_barrier()

    tl.store(dstate + sequence * N * d + corner, g, inside[None, :])
    tl.store(dA + sequence * N * d + corner, sum_dA, inside[None, :])
    tl.store(dD + sequence * d + channel, sum_dD, inside)
    tl.store(ddt_bias + sequence * d + channel, sum_ddt, inside)


@jit
def _place(d, length, BLOCK: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr):
    """The program's sequence, its sample's first row, its channels, which exist, states, offsets in (d, N); chunks."""
    sample = tl.program_id(0).to(tl.int64)
    sequence = sample * tl.num_programs(2) + tl.program_id(2)
    first = sample * tl.num_programs(2) * length
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    return sequence, first, channel, channel < d, n, n[:, None] + channel[None, :] * N, tl.cdiv(length, CHUNK)


@jit
def _rows(arrays, tokens, start, length, d, channel, TILE: tl.constexpr, RASTER: tl.constexpr):
    """For each of TILE tokens from the start-th: its index, and its row of each of `arrays`."""
    rows = ()
    for i in tl.static_range(TILE):
        t = _token(tokens, start + i, length, RASTER)
        row = (t,)
        for k in tl.static_range(len(arrays)):
            row = row + (tl.load(arrays[k] + (t * d + channel), channel < d, 0.0),)
        rows = rows + (row,)
    return rows


@jit
def _token(tokens, i, length, RASTER: tl.constexpr):
    """The i-th token visited in this program's segment; the nearest if there is none."""
    i = tl.program_id(2) * length + tl.minimum(tl.maximum(i, 0), length - 1)
    return i if RASTER else tl.load(tokens + i)


@jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@jit
def _softplus(x):
    """max(x, 0) + log1p(e), e = exp(-|x|), as 2 artanh(e / (2 + e)): accurate however small."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)  # at most 1/3: the series' eight terms leave 2e-9
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return tl.maximum(x, 0.0) + 2.0 * s * series

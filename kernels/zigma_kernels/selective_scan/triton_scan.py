"""The selective scan by Triton kernels, through jax-triton: for NVIDIA GPUs from Ampere on.

The visiting order is followed inside the kernels (`triton_kernels`), by the index of each visited row: nothing
is transposed, and only the number of states is padded, to a power of two. Sums over tokens (dA, dD, ddt_bias)
leave a kernel one for each sequence, sums over channels (dB, dC) one for each block of channels; XLA adds them
up. Without atomics, two runs give the same bits. Triton is imported when a call asks for it.
"""

import functools
import math

import jax
import jax.numpy as jnp

from zigma_kernels.dispatch import nvidia_capability
from zigma_kernels.partitioned import opaque_op
from zigma_kernels.visiting import Visit, num_segments

FORWARD_TILE = 4  # tokens whose rows are loaded together
BACKWARD_TILE = 2  # tokens whose states are in registers together: with 4 they do not fit
CHUNK = 32  # tokens from one saved state to the next
HOPPER = (9, 0)  # what is compiled for on a machine without a GPU


def selective_scan(u, dt, A, B, C, D, z, dt_bias, order, initial_state):
    """The contract in `api`."""
    _require_support(order, u, dt, A, B, C, D, z, dt_bias, initial_state)
    visit = Visit.along(order, u.shape[1])
    d, n = A.shape
    padding = 2 ** (n - 1).bit_length() - n  # states that stay 0

    def wide(x):
        """(..., n) in float32, padded"""
        x = x.astype(jnp.float32)
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)]) if padding else x

    state = wide(initial_state.reshape(-1, visit.segments, d, n))
    vectors = D.astype(jnp.float32), dt_bias.astype(jnp.float32)
    scan = _scan(visit.kind == "raster")
    y, state = scan(visit.tokens, u, dt, z, wide(B), wide(C), wide(A), *vectors, state)
    return y, state[..., :n].reshape(initial_state.shape)


def _require_support(order, *arrays):
    unknown = {x.dtype.name for x in arrays if x is not None} - {"float32", "bfloat16", "float16"}
    if unknown:
        raise NotImplementedError(f"takes float32, bfloat16 and float16, not {', '.join(sorted(unknown))}")
    u, _, A, *_ = arrays
    if A.shape[1] > 256:
        raise NotImplementedError(f"takes up to 256 states, not {A.shape[1]}")
    _, L, d = u.shape
    N = 2 ** (A.shape[1] - 1).bit_length()
    if L * max(d, N) >= 2**31 or d * N >= 2**31:  # offsets within a sample have 32 bits
        raise NotImplementedError(f"u {u.shape} with {N} states: takes L * d, L * states and d * states < 2^31")
    if max(num_segments(order), math.ceil(d / _block(N))) >= 2**16:
        raise NotImplementedError(f"{num_segments(order)} segments, {d} channels: CUDA allows 2^16 - 1 blocks of each")
    try:
        import jax_triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        install = "pip install 'zigma_jax[cuda13,triton]'"
        raise NotImplementedError(f"needs jax-triton and JAX's CUDA plugin ({install}): {error}") from error


@functools.cache
def _scan(raster):
    """The scan (tokens, u, dt, z, B, C, A, D, dt_bias, state) -> (y, final state), N states a power of two."""
    return opaque_op(
        functools.partial(_forward, raster),
        functools.partial(_backward, raster),
        arguments="b L d, b L d, b L d, b L n, b L n, d n, d, d, b s d n",
        results="b L d, b s d n",
        saved="b s c d n",
        name="selective_scan",
    )


def _forward(raster, tokens, u, dt, z, B, C, A, D, dt_bias, state):
    chunks = math.ceil(u.shape[1] // state.shape[1] / CHUNK)
    starts = _like(state, (*state.shape[:2], chunks, *A.shape))
    inputs = tokens, u, dt, u if z is None else z, B, C, A, D, dt_bias, state
    out = _like(u), _like(state), starts
    return _call("forward_kernel", state, inputs, out, RASTER=raster, GATED=z is not None, TILE=FORWARD_TILE)


def _backward(raster, tokens, starts, dy, dfinal, u, dt, z, B, C, A, D, dt_bias, state):
    (b, segments, d, N), blocks = state.shape, _blocks(state)
    partial, vector = _like(B, (blocks, *B.shape)), _like(D, (b, segments, d))
    scratch = _like(A, (b, segments, blocks, CHUNK // BACKWARD_TILE, _block(N), N))
    inputs = tokens, u, dt, u if z is None else z, B, C, A, D, dt_bias, starts, dy, dfinal
    like_z = _like(u, (1,)) if z is None else _like(z)
    out = _like(u), _like(dt), like_z, partial, partial, _like(state), vector, vector, _like(state), scratch
    found = _call("backward_kernel", state, inputs, out, RASTER=raster, GATED=z is not None, TILE=BACKWARD_TILE)
    du, ddt, dz, dB, dC, dA, dD, ddt_bias, dstate, _ = found
    parameters = (x.sum(1) for x in (dA, dD, ddt_bias))
    return du, ddt, None if z is None else dz, dB.sum(0), dC.sum(0), *parameters, dstate


def _like(x, shape=None):
    return jax.ShapeDtypeStruct(x.shape if shape is None else shape, x.dtype)


def _block(N):
    """Channels of a program: more would not fit the registers of its warp.

    Of four states or fewer, two channels a lane: of one, the compiler rounds the product with those of other lanes
    differently in each lane, and which lane's sum over channels is stored would be left to chance.
    """
    if N <= 4:
        return 64
    return 32 if N <= 16 else 256 // N


def _blocks(state):
    return math.ceil(state.shape[2] / _block(state.shape[3]))


def _call(kernel, state, inputs, out, **options):
    """Launches a kernel, one program for each sample, block of channels and segment."""
    import jax_triton  # pyright: ignore[reportMissingImports]

    from zigma_kernels.selective_scan import triton_kernels

    b, segments, d, N = state.shape
    major, minor = nvidia_capability() or HOPPER
    return jax_triton.triton_call(
        *inputs,
        d,
        inputs[1].shape[1] // segments,
        kernel=getattr(triton_kernels, kernel),
        out_shape=out,
        grid=(b, _blocks(state), segments),
        name=f"selective_scan_{kernel}",
        num_warps=1,
        compute_capability=10 * major + minor,
        N=N,
        BLOCK=_block(N),
        CHUNK=CHUNK,
        **options,
    )

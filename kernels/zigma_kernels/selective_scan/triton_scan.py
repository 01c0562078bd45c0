"""The selective scan by Triton kernels, through jax-triton: for NVIDIA GPUs from Ampere on.

The visiting order is followed inside the kernels (`triton_kernels`), by the index of each visited row: nothing
is transposed but the states, and the number of states is padded to a power of two. Sums over tokens (dA, dD,
ddt_bias) come out of a kernel one for each sequence, sums over channels (dB, dC) one for each block of channels,
and are added up by XLA: no atomics, so two runs give the same bits. Nothing here imports Triton before a call
asks for it.
"""

import functools
import math

import jax
import jax.numpy as jnp

from zigma_kernels.dispatch import nvidia_capability
from zigma_kernels.partitioned import vary_alike
from zigma_kernels.visiting import Visit

FORWARD_TILE = 4  # tokens whose rows are loaded together
BACKWARD_TILE = 2  # tokens whose states are in registers together: with 4 they do not fit
CHUNK = 32  # tokens from one saved state to the next
HOPPER = (9, 0)  # what is compiled for on a machine without a GPU


def selective_scan(u, dt, A, B, C, D, z, dt_bias, order, initial_state):
    """The contract in `api`."""
    _require_support(u, dt, A, B, C, D, z, dt_bias, initial_state)
    visit = Visit.along(order, u.shape[1])
    d, n = A.shape
    padding = 2 ** (n - 1).bit_length() - n  # states that stay 0

    def wide(x):
        """(..., n) in float32, padded"""
        x = x.astype(jnp.float32)
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)]) if padding else x

    state = wide(initial_state).reshape(-1, d, n + padding)
    vectors = D.astype(jnp.float32), dt_bias.astype(jnp.float32)
    y, state = _scan(visit, u, dt, z, wide(B), wide(C), wide(A), *vectors, state)
    return y, state[..., :n].reshape(initial_state.shape)


def _require_support(*arrays):
    unknown = {x.dtype.name for x in arrays if x is not None} - {"float32", "bfloat16", "float16"}
    if unknown:
        raise NotImplementedError(f"takes float32, bfloat16 and float16, not {', '.join(sorted(unknown))}")
    _, L, d = arrays[0].shape
    if L * d >= 2**31:
        raise NotImplementedError(f"offsets in a sample have 32 bits, but L * d = {L} * {d}")
    try:
        import jax_triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        install = "pip install 'zigma_jax[cuda13,triton]'"
        raise NotImplementedError(f"needs jax-triton and JAX's CUDA plugin ({install}): {error}") from error


@jax.custom_vjp
def _scan(visit, u, dt, z, B, C, A, D, dt_bias, state):
    """u, dt, z (b, L, d); B, C (b, L, N); A (d, N); D, dt_bias (d,); state (b * segments, d, N)."""
    y, final, _ = _forward(visit, False, u, dt, z, B, C, A, D, dt_bias, state)
    return y, final


def _scan_fwd(visit, *arrays):
    y, final, starts = _forward(visit, True, *arrays)
    return (y, final), (visit, starts, *arrays[:-1])


def _scan_bwd(residuals, gradients):
    return None, *_backward(*residuals, *gradients)


_scan.defvjp(_scan_fwd, _scan_bwd)


def _forward(visit, save, u, dt, z, B, C, A, D, dt_bias, state):
    """y, the final state, and with `save` the state before each chunk (b * segments, chunks, d, N)."""
    chunks = math.ceil(u.shape[1] // visit.segments / CHUNK)
    starts = (len(state), chunks, *A.shape) if save else (1,)
    inputs = u, dt, u if z is None else z, B, C, A, D, dt_bias, state
    out = _like(u), _like(state), _like(state, starts)
    return _call("forward_kernel", visit, inputs, out, TILE=FORWARD_TILE, GATED=z is not None, SAVE=save)


def _backward(visit, starts, u, dt, z, B, C, A, D, dt_bias, dy, dfinal):
    """The gradients of u, dt, z, B, C, A, D, dt_bias, state."""
    sequences, (d, N) = len(dfinal), A.shape
    blocks = math.ceil(d / _block(N))
    partial, vector = _like(B, (blocks, *B.shape)), _like(D, (sequences, d))
    scratch = _like(A, (sequences, blocks, CHUNK // BACKWARD_TILE, _block(N), N))
    inputs = u, dt, u if z is None else z, B, C, A, D, dt_bias, starts, dy, dfinal
    dz = _like(u, (1,)) if z is None else _like(z)
    out = _like(u), _like(dt), dz, partial, partial, _like(dfinal), vector, vector, _like(dfinal), scratch
    found = _call("backward_kernel", visit, inputs, out, TILE=BACKWARD_TILE, GATED=z is not None)
    du, ddt, dz, dB, dC, dA, dD, ddt_bias, dstate, _ = found
    sums = (x.sum(0) for x in (dB, dC, dA, dD, ddt_bias))
    return du, ddt, None if z is None else dz, *sums, dstate


def _like(x, shape=None):
    return jax.ShapeDtypeStruct(x.shape if shape is None else shape, x.dtype)


def _block(N):
    """Channels of a program: with 16 states, one for each lane of its warp."""
    return min(32, max(1, 512 // N))


def _call(kernel, visit, inputs, out, **options):
    """Launches a kernel, a program for each segment, block of channels and sample; under vmap, again and again."""
    b, L, d = inputs[0].shape
    N = inputs[5].shape[1]
    options |= {"N": N, "BLOCK": _block(N), "CHUNK": CHUNK, "RASTER": visit.kind == "raster"}
    launch = functools.partial(
        _launch,
        kernel,
        scalars=(d, L // visit.segments),
        out_shape=out,
        grid=(visit.segments, math.ceil(d / _block(N)), b),
        options=options,
    )
    inputs = vary_alike((visit.tokens, *inputs))
    outputs = jax.custom_batching.sequential_vmap(lambda *inputs: launch(inputs))(*inputs)
    return vary_alike((outputs, inputs))[0]


def _launch(kernel, inputs, *, scalars, out_shape, grid, options):
    import jax_triton  # pyright: ignore[reportMissingImports]

    from zigma_kernels.selective_scan import triton_kernels

    major, minor = nvidia_capability() or HOPPER
    return jax_triton.triton_call(
        *inputs,
        *scalars,
        kernel=getattr(triton_kernels, kernel),
        out_shape=out_shape,
        grid=grid,
        name=f"selective_scan_{kernel}",
        num_warps=1,
        compute_capability=10 * major + minor,
        **options,
    )

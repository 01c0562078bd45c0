"""The selective scan by Triton kernels, through jax-triton: for NVIDIA GPUs from Ampere on.

The visiting order is followed inside the kernels (`triton_kernels`), by the index of each visited row: nothing
is transposed but the states, and the number of states is padded to a power of two. Sums over tokens (dA, dD,
ddt_bias) come out of a kernel one for each sequence, sums over channels (dB, dC) one for each block of channels,
and are added up by XLA: no atomics, so two runs give the same bits. Nothing here imports Triton before a call
asks for it.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp

from zigma_kernels.dispatch import nvidia_capability
from zigma_kernels.partitioned import vary_alike
from zigma_kernels.visiting import Visit

BLOCK = 32  # channels of a program: one a lane
TILE = 2  # tokens whose states the backward kernel holds in registers at once
CHUNK = 32  # tokens from one saved state to the next
DTYPES = ("float32", "bfloat16", "float16")
HOPPER = (9, 0)  # what is compiled for on a machine without a GPU


def selective_scan(u, dt, A, B, C, D, z, dt_bias, order, initial_state):
    """The contract in `api`."""
    _require_support(u, dt, A, B, C, D, z, dt_bias, initial_state)
    d, n = A.shape
    visit = Visit.along(order, u.shape[1])
    padding = 2 ** (n - 1).bit_length() - n  # states that stay 0

    def wide(x, *shape):
        """(..., n) in float32, padded"""
        x = x.astype(jnp.float32).reshape(shape or x.shape)
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)]) if padding else x

    state = jnp.swapaxes(wide(initial_state, -1, d, n), 1, 2)
    vectors = D.astype(jnp.float32), dt_bias.astype(jnp.float32)
    y, state = _scan(visit, u, dt, z, wide(B), wide(C), wide(A).T, *vectors, state)
    return y, jnp.swapaxes(state, 1, 2)[..., :n].reshape(initial_state.shape)


def _require_support(*arrays):
    dtypes = {x.dtype.name for x in arrays if x is not None}
    if not dtypes <= set(DTYPES):
        raise NotImplementedError(f"takes {', '.join(DTYPES)}, not {', '.join(sorted(dtypes - set(DTYPES)))}")
    _, L, d = arrays[0].shape
    if L * d >= 2**31:
        raise NotImplementedError(f"indexes a sample by 32 bits: L * d = {L * d}")
    for module, extra in (("triton", "triton"), ("jax_triton", "triton")):
        if importlib.util.find_spec(module) is None:
            raise NotImplementedError(f"{module} is not installed: pip install 'zigma_jax[{extra}]'")
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise NotImplementedError("JAX's CUDA plugin is not installed: pip install 'zigma_jax[cuda13]'")


@jax.custom_vjp
def _scan(visit, u, dt, z, B, C, A, D, dt_bias, state):
    """u, dt, z (b, L, d); B, C (b, L, N); A (N, d); D, dt_bias (d,); state (b * segments, N, d)."""
    y, final, _ = _forward(visit, False, u, dt, z, B, C, A, D, dt_bias, state)
    return y, final


def _scan_fwd(visit, *arrays):
    y, final, starts = _forward(visit, True, *arrays)
    return (y, final), (visit, starts, *arrays[:-1])


def _scan_bwd(residuals, gradients):
    return None, *_backward(*residuals, *gradients)


_scan.defvjp(_scan_fwd, _scan_bwd)


def _forward(visit, save, u, dt, z, B, C, A, D, dt_bias, state):
    """y, the final state, and with `save` the state before each chunk (b * segments, chunks, N, d)."""
    sizes = _sizes(visit, u, A)
    _, chunks, _ = sizes
    out = u, state, _like(state, (len(state), chunks, *state.shape[1:]) if save else (1,))
    inputs = u, dt, u if z is None else z, B, C, A, D, dt_bias, state
    return _call("forward_kernel", visit, sizes, inputs, out, GATED=z is not None, SAVE=save)


def _backward(visit, starts, u, dt, z, B, C, A, D, dt_bias, dy, dfinal):
    """The gradients of u, dt, z, B, C, A, D, dt_bias, state."""
    sizes = _sizes(visit, u, A)
    length, chunks, blocks = sizes
    sequences, (N, d) = len(dfinal), A.shape
    partial = _like(B, (blocks, *B.shape))
    vector = _like(D, (sequences, d))
    scratch = _like(A, (sequences * blocks, CHUNK // TILE, N, BLOCK))
    out = u, dt, _like(u, (1,)) if z is None else z, partial, partial, dfinal, vector, vector, dfinal, scratch
    inputs = u, dt, u if z is None else z, B, C, A, D, dt_bias, starts, dy, dfinal
    gradients = _call("backward_kernel", visit, sizes, inputs, out, GATED=z is not None)
    du, ddt, dz, dB, dC, dA, dD, ddt_bias, dstate, _ = gradients
    sums = (x.sum(0) for x in (dB, dC, dA, dD, ddt_bias))
    return du, ddt, None if z is None else dz, *sums, dstate


def _sizes(visit, u, A):
    """(tokens of a sequence, its chunks, blocks of channels)"""
    length = u.shape[1] // visit.segments
    return length, -(-length // CHUNK), -(-A.shape[1] // BLOCK)


def _like(x, shape):
    return jax.ShapeDtypeStruct(shape, x.dtype)


def _call(kernel, visit, sizes, inputs, out, **options):
    """Launches a kernel, one program for each sequence and block of channels; under vmap, once for each sample."""
    length, chunks, blocks = sizes
    N, d = inputs[5].shape
    launch = functools.partial(
        _launch,
        kernel,
        scalars=(d, length, visit.segments, chunks),
        out_shape=[_like(x, x.shape) for x in out],
        programs=inputs[0].shape[0] * visit.segments * blocks,
        options={"N": N, "BLOCK": BLOCK, "TILE": TILE, "CHUNK": CHUNK, "RASTER": visit.kind == "raster", **options},
    )
    inputs = vary_alike((visit.tokens, *inputs))
    outputs = jax.custom_batching.sequential_vmap(lambda *inputs: launch(inputs))(*inputs)
    return vary_alike((outputs, inputs))[0]


def _launch(kernel, inputs, *, scalars, out_shape, programs, options):
    import jax_triton

    from zigma_kernels.selective_scan import triton_kernels

    major, minor = nvidia_capability() or HOPPER
    return jax_triton.triton_call(
        *inputs,
        *scalars,
        kernel=getattr(triton_kernels, kernel),
        out_shape=out_shape,
        grid=(programs,),
        name=f"selective_scan_{kernel}",
        num_warps=1,
        compute_capability=10 * major + minor,
        **options,
    )

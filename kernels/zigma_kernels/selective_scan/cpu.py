"""The selective scan by kernels in C++, for CPUs (`zigma_kernels/cpu/scan.h` says how they work).

They follow the visiting order by the index of each visited row, and use all of XLA's threads at any batch size. The
gradient keeps the state at every CHUNK-th token. A program that is lowered for another platform than the machine's
CPU holds the scan in XLA's own operations instead.
"""

import functools
import math

import jax
import jax.numpy as jnp

from zigma_kernels.cpu.library import BLOCK, CHUNK, by_platform, call
from zigma_kernels.partitioned import opaque_op
from zigma_kernels.selective_scan import xla_chunks
from zigma_kernels.visiting import Visit


def selective_scan(u, dt, A, B, C, D, z, dt_bias, order, initial_state):
    """The contract in `api`."""
    unknown = {x.dtype.name for x in (u, dt, A, B, C, D, z, dt_bias, initial_state) if x is not None}
    if unknown := unknown - {"float32", "bfloat16", "float16"}:
        raise NotImplementedError(f"takes float32, bfloat16 and float16, not {', '.join(sorted(unknown))}")
    if not (u.size and A.size):
        raise NotImplementedError(f"u {u.shape}, A {A.shape}: there is nothing to scan")
    call("selective_scan_forward_float32", ())  # is it there?
    visit = Visit.along(order, u.shape[1])
    rows = {x.dtype for x in (u, dt, z) if x is not None}
    dtype = u.dtype if rows == {jnp.dtype("bfloat16")} else jnp.dtype("float32")
    u_, dt, z = (None if x is None else x.astype(dtype) for x in (u, dt, z))
    B, C, A, D, dt_bias = (x.astype(jnp.float32) for x in (B, C, A, D, dt_bias))
    state = initial_state.reshape(-1, visit.segments, *A.shape)
    y, state = _scan()(visit.tokens, u_, dt, z, B, C, A, D, dt_bias, state)
    return y.astype(u.dtype), state.reshape(initial_state.shape)


@functools.cache
def _scan():
    """The scan (tokens, u, dt, z, B, C, A, D, dt_bias, state) -> (y, final state)."""
    return opaque_op(
        functools.partial(_forward, True),
        _backward,
        arguments="b L d, b L d, b L d, b L n, b L n, d n, d, d, b s d n",
        results="b L d, b s d n",
        saved="b c n d",
        alone=functools.partial(_forward, False),
        name="selective_scan",
    )


def _forward(saving, tokens, u, dt, z, B, C, A, D, dt_bias, state):
    (b, L, d), (segments, n) = u.shape, (state.shape[1], state.shape[3])
    starts = _array((b, segments * math.ceil(L // segments / CHUNK), n, d) if saving else (1,))

    def kernel(tokens, u, dt, z, *rest):
        run = call(f"selective_scan_forward_{u.dtype}", (_array(u.shape, u.dtype), _array(state.shape), starts))
        return tuple(run(tokens, u, dt, u if z is None else z, *rest, gated=z is not None, saving=saving))

    def other(*arrays):
        y, final, _ = xla_chunks.forward(*_as_xla(*arrays))
        return y, jnp.transpose(final, (1, 0, 3, 2)), jnp.zeros(starts.shape)

    outputs = by_platform(kernel, other, tokens, u, dt, z, B, C, A, D, dt_bias, state)
    return outputs if saving else outputs[:2]


def _backward(tokens, starts, dy, dfinal, u, dt, z, B, C, A, D, dt_bias, state):
    (b, L, d), n = u.shape, A.shape[1]
    parts = _array((math.ceil(d / BLOCK), b, L, n))
    rows, projected = _array(u.shape, u.dtype), _array(B.shape)
    results = rows, rows, rows if z is not None else _array((1, 1, 1), u.dtype), projected, projected
    results += _array((b, d, n)), _array((b, d)), _array((b, d)), _array(state.shape), parts, parts

    def kernel(starts, dy, dfinal, tokens, u, dt, z, B, C, A, D, dt_bias, state):
        del state
        # A task reads all that it needs of a row before it writes there. Gradients of dt and z may so lie where these
        # do, which nothing needs any more; u is needed again.
        aliases = {2: 1} | ({3: 2} if z is not None else {})
        run = call(f"selective_scan_backward_{u.dtype}", results, aliases)
        arrays = tokens, u, dt, u if z is None else z, B, C, A, D, dt_bias, starts, dy, dfinal
        du, ddt, dz, *rest, _, _ = run(*arrays, gated=z is not None)
        return du, ddt, None if z is None else dz, *rest

    def other(starts, dy, dfinal, *arrays):
        arrays = _as_xla(*arrays)
        starts = xla_chunks.forward(*arrays)[2]
        dfinal = jnp.transpose(dfinal, (1, 0, 3, 2))
        du, ddt, dA, dB, dC, dD, dz, ddt_bias, dstate = xla_chunks.backward(arrays[0], starts, dy, dfinal, *arrays[1:])
        of_first = (jnp.zeros((b, *x.shape)).at[0].set(x) for x in (dA.T, dD, ddt_bias))  # summed over b outside
        return du, ddt, dz, dB, dC, *of_first, jnp.transpose(dstate, (1, 0, 3, 2))

    return by_platform(
        kernel, other, starts, dy, dfinal.astype(jnp.float32), tokens, u, dt, z, B, C, A, D, dt_bias, state
    )


def _as_xla(tokens, u, dt, z, B, C, A, D, dt_bias, state):
    """Arguments as `xla_chunks` takes them."""
    visit = Visit(tokens, jnp.argsort(tokens), state.shape[1], "permuted")
    return visit, u, dt, A.T, B, C, D, z, dt_bias, jnp.transpose(state, (1, 0, 3, 2))


def _array(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)

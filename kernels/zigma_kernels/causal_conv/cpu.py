"""The causal convolution by kernels in C++, for CPUs (`zigma_kernels/cpu/conv.h` says how they work).

A program that is lowered for another platform than the machine's CPU holds it in XLA's own operations instead.
"""

import functools

import jax
import jax.numpy as jnp

from zigma_kernels.causal_conv import xla
from zigma_kernels.cpu.library import by_platform, call
from zigma_kernels.partitioned import opaque_op
from zigma_kernels.visiting import Visit


def causal_conv(x, weight, bias, order, activation, initial_state):
    """The contract in `api`."""
    unknown = {a.dtype.name for a in (x, weight, bias, initial_state)} - {"float32", "bfloat16", "float16"}
    if unknown:
        raise NotImplementedError(f"takes float32, bfloat16 and float16, not {', '.join(sorted(unknown))}")
    if not x.size:
        raise NotImplementedError(f"x {x.shape}: there is nothing to convolve")
    call("causal_conv_forward_float32", ())  # is it there?
    visit = Visit.along(order, x.shape[1])
    dtype = x.dtype if x.dtype == initial_state.dtype == jnp.bfloat16 else jnp.float32
    past = initial_state.reshape(x.shape[0], visit.segments, *initial_state.shape[-2:]).astype(dtype)
    weight, bias = weight.astype(jnp.float32), bias.astype(jnp.float32)
    (y,) = _conv(activation)(visit.tokens, x.astype(dtype), weight, bias, past)
    return y.astype(x.dtype)


@functools.cache
def _conv(activation):
    """The convolution (tokens, x, weight, bias, past) -> (y,)."""
    return opaque_op(
        functools.partial(_forward, activation),
        functools.partial(_backward, activation),
        arguments="b L d, w d, d, b s p d",
        results="b L d",
    )


def _forward(activation, *arrays):
    def kernel(tokens, x, *rest):
        run = call(f"causal_conv_forward_{x.dtype}", (jax.ShapeDtypeStruct(x.shape, x.dtype),))
        return tuple(run(tokens, x, *rest, silu=activation == "silu"))

    def other(*arrays):
        return (_as_xla(activation, *arrays)(*arrays[1:]),)

    return by_platform(kernel, other, *arrays)


def _backward(activation, tokens, dy, *arrays):
    def kernel(dy, tokens, x, weight, bias, past):
        sums = (jax.ShapeDtypeStruct((x.shape[0], *a.shape), a.dtype) for a in (weight, bias))
        rows, before = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, past))
        # A task has read a row of dy before it writes dx there.
        run = call(f"causal_conv_backward_{x.dtype}", (rows, *sums, before), aliases={5: 0})
        return tuple(run(tokens, x, weight, bias, past, dy, silu=activation == "silu"))

    def other(dy, *arrays):
        dx, *sums, dpast = jax.vjp(_as_xla(activation, *arrays), *arrays[1:])[1](dy)
        of_first = (jnp.zeros((dy.shape[0], *a.shape)).at[0].set(a) for a in sums)  # summed over b outside
        return dx, *of_first, dpast

    return by_platform(kernel, other, dy, tokens, *arrays)


def _as_xla(activation, tokens, x, weight, bias, past):
    visit = Visit(tokens, jnp.argsort(tokens), past.shape[1], "permuted")
    return lambda x, weight, bias, past: xla.conv(activation, visit, x, weight, bias, past.reshape(-1, *past.shape[2:]))

"""The official initialisation: PyTorch's defaults where the original keeps them, its own elsewhere.

Kernels here are (in, out), so PyTorch's fan-in is the first axis. Source: `_init_weights` and
`initialize_weights` of model_zigma.py, `Mamba.__init__` of mamba_simple.py.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

zeros = nnx.initializers.zeros_init()
normal_002 = nnx.initializers.normal(0.02)
xavier_uniform = nnx.initializers.xavier_uniform()


def uniform(bound: float):
    """Uniform in ±bound."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_linear(key, shape, dtype=jnp.float32):
    """Kernel of `torch.nn.Linear`: uniform in ±1/√(fan in)."""
    return uniform(shape[0] ** -0.5)(key, shape, dtype)


def scaled(init, factor: float):
    """`init` times `factor`; of 1 it is `init` itself."""
    return init if factor == 1 else lambda key, shape, dtype=jnp.float32: factor * init(key, shape, dtype)


def torch_linear_scaled(depth: int):
    """`torch_linear` divided by √depth: the projection that writes to the residual stream."""

    def init(key, shape, dtype=jnp.float32):
        return torch_linear(key, shape, dtype) / math.sqrt(depth)

    return init


def time_step_bias(smallest: float = 1e-3, largest: float = 1e-1, floor: float = 1e-4):
    """Inverse softplus of time steps drawn log-uniformly in [smallest, largest]."""

    def init(key, shape, dtype=jnp.float32):
        log_dt = jax.random.uniform(key, shape, dtype, math.log(smallest), math.log(largest))
        dt = jnp.maximum(jnp.exp(log_dt), floor)
        return dt + jnp.log(-jnp.expm1(-dt))

    return init


def log_arange(key, shape, dtype=jnp.float32):
    """A_log (d, n) = log(1 … n) in every channel: S4D-real."""
    del key
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=dtype)), shape)


def log_uniform_decay(key, shape, dtype=jnp.float32):
    """A_log of Mamba-2's heads: the logarithm of a decay drawn uniformly from [1, 16]."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1, 16))

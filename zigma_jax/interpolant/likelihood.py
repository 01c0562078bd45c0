"""Log-likelihood by the change of variables along the probability-flow ODE (Song et al., arXiv 2011.13456,
D.2)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zigma_jax.errors import ConfigError
from zigma_jax.interpolant.draws import Keys, fold_in_each, per_sample_keys
from zigma_jax.interpolant.objective import Floats, Interpolant, ModelFn, at_least_float32, check_choice
from zigma_jax.interpolant.ode import integrate, ode_times


def log_likelihood(
    ip: Interpolant,
    model_fn: ModelFn,
    x: Float[Floats, "b ..."],
    key: Keys,
    method: str = "dopri5",
    steps: int = 50,
    atol: float = 1e-6,
    rtol: float = 1e-3,
    probes: int = 1,
    divergence: str = "hutchinson",
) -> Float[Array, "b"]:
    """Log density of data x under the model, in nats: log N(z; 0, 1) minus the divergence met on the way from
    z to x.

    The divergence is Hutchinson's estimate p^T (dv/dx) p, averaged over `probes` vectors p of +-1 a sample, which stay
    the same along the whole way; or "exact", the sum of the Jacobian's diagonal, which takes as many backward passes as
    a sample has elements and no key. (The original draws new probes at every evaluation, and so gives
    the adaptive solver a field that is not a function of x and t.) x is taken to be at the data end of
    `ip.interval()`, 1 or 1 - eps.

    Pure, to be jitted like `sample_ode`, whose method, steps, atol and rtol these are. An evaluation costs
    one forward and `probes` backward passes of the model. key: one PRNG key, or one a sample (b,).

    Raises:
        ConfigError: as `sample_ode`; probes below 1; an unknown divergence.
    """
    check_choice("divergence", divergence, ("hutchinson", "exact"))
    if probes < 1:
        raise ConfigError(f"probes = {probes!r} must be at least 1")
    times = ode_times(method, ip.interval("sample"), steps)
    dtype = jnp.asarray(x).dtype
    x = at_least_float32("x", x)
    size = math.prod(x.shape[1:])
    if divergence == "exact":
        vectors, scale = jnp.arange(size), 1.0  # one unit vector after the other, made when it is its turn
    else:
        vectors, scale = _probes(per_sample_keys(key, x.shape[0]), x, probes), 1 / probes
    axes = tuple(range(1, x.ndim))

    def field(state, t):
        # By reverse mode: the kernels of a model define their own backward pass and no forward-mode one.
        velocity, vjp = jax.vjp(lambda x: ip.drift(model_fn, x.astype(dtype), t), state[0])

        def add(total, p):
            p = (
                jnp.broadcast_to(jax.nn.one_hot(p, size, dtype=x.dtype).reshape(x.shape[1:]), x.shape)
                if p.ndim == 0
                else p
            )
            return total + jnp.sum(p * vjp(p)[0], axis=axes), None

        total, _ = jax.lax.scan(add, jnp.zeros_like(state[1]), vectors)
        return velocity, scale * total

    start = (x, jnp.zeros(x.shape[0], x.dtype))
    z, minus_divergence = integrate(field, start, times[::-1], method=method, atol=atol, rtol=rtol)
    log_prior = -0.5 * jnp.sum(jnp.square(z) + math.log(2 * math.pi), axis=axes)
    return log_prior + minus_divergence


def bits_per_dim(log_likelihood: Float[Array, "b"], num_elements: int) -> Float[Array, "b"]:
    """Nats a sample to bits an element. Of 8-bit pictures scaled to [-1, 1], log2(127.5) = 6.99 more: the bits of
    that scale."""
    return -log_likelihood / (num_elements * math.log(2))


def _probes(keys, x: Array, count: int) -> Array:
    """(count, b, ...) of +-1."""

    def one(index):
        return jax.vmap(lambda k: jax.random.rademacher(k, x.shape[1:], x.dtype))(fold_in_each(keys, index))

    return jax.vmap(one)(jnp.arange(count))

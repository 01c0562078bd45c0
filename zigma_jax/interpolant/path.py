"""Interpolant paths: how noise x0 at t = 0 becomes data x1 at t = 1.

A path is x_t = alpha(t) x1 + sigma(t) x0, so its velocity is alpha' x1 + sigma' x0 (SiT, arXiv 2401.08740,
section 2; the coefficients are those of `transport/path.py` in the original). Everything a sampler needs
follows from these two functions; what would be 0/0 or would cancel in float32 is written out here in the form
that does not:

    velocity  = growth * x + diffusivity * score          growth = alpha' / alpha
    noise     = (alpha' * x - alpha * velocity) / wronskian
    score     = -noise / sigma                            wronskian = alpha' sigma - alpha sigma'
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

_HALF_PI = math.pi / 2
_BETA_MIN, _BETA_MAX = (
    0.1,
    20.0,
)  # the variance-preserving schedule of Song et al., arXiv 2011.13456, appendix C


class Coefficients(NamedTuple):
    """A path at given times; every field has the shape and dtype of t. Infinite where the path is
    singular."""

    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]
    d_alpha: Float[Array, "..."]
    d_sigma: Float[Array, "..."]
    growth: Float[Array, "..."]
    """alpha' / alpha: the linear part of the probability-flow velocity."""
    diffusivity: Float[Array, "..."]
    """sigma * wronskian / alpha: what the score is multiplied by in the velocity (the original's
    `drift_var`)."""
    wronskian: Float[Array, "..."]
    """alpha' sigma - alpha sigma'."""


def linear(t: Float[Array, "..."]) -> Coefficients:
    """alpha = t, sigma = 1 - t."""
    one = jnp.ones_like(t)
    return Coefficients(
        alpha=t, sigma=1 - t, d_alpha=one, d_sigma=-one, growth=1 / t, diffusivity=(1 - t) / t, wronskian=one
    )


def gvp(t: Float[Array, "..."]) -> Coefficients:
    """alpha = sin(pi t / 2), sigma = cos(pi t / 2): variance-preserving for data of unit variance."""
    # sin(pi/2 (1 - t)) keeps its relative accuracy as t -> 1, where cos(pi t / 2) has lost it.
    sin, cos = jnp.sin(_HALF_PI * t), jnp.sin(_HALF_PI * (1 - t))
    growth = _HALF_PI * cos / sin
    return Coefficients(
        alpha=sin,
        sigma=cos,
        d_alpha=_HALF_PI * cos,
        d_sigma=-_HALF_PI * sin,
        growth=growth,
        diffusivity=growth,
        wronskian=jnp.full_like(t, _HALF_PI),
    )


def vp(t: Float[Array, "..."]) -> Coefficients:
    """log alpha = -(1-t)^2 (20 - 0.1)/4 - (1-t) 0.1/2, sigma^2 = 1 - alpha^2: the VP diffusion run
    backwards."""
    s = 1 - t  # diffusion time
    log_alpha = -s * (0.25 * (_BETA_MAX - _BETA_MIN) * s + 0.5 * _BETA_MIN)
    growth = 0.5 * ((_BETA_MAX - _BETA_MIN) * s + _BETA_MIN)
    alpha = jnp.exp(log_alpha)
    sigma = jnp.sqrt(-jnp.expm1(2 * log_alpha))  # 1 - exp(...) cancels to nothing as t -> 1
    d_alpha = alpha * growth
    return Coefficients(
        alpha=alpha,
        sigma=sigma,
        d_alpha=d_alpha,
        d_sigma=-(alpha**2) * growth / sigma,
        growth=growth,
        diffusivity=growth,
        wronskian=d_alpha / sigma,
    )


PATHS: dict[str, Callable[[Array], Coefficients]] = {"linear": linear, "gvp": gvp, "vp": vp}

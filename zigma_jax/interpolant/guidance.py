"""Classifier-free guidance (Ho & Salimans, arXiv 2207.12598), within an interval of times (arXiv 2404.07724)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from zigma_jax.errors import ConfigError
from zigma_jax.interpolant.objective import ModelFn, at_least_float32, evaluate

ConditionalModelFn = Callable[[Array, Array, Any], Array]
"""model_fn(x (b, ...), t (b,), y) -> prediction (b, ...): a `ZigMa`, or a plain function. y: a tree of (b, ...)."""


_LARGEST = 10_000  # far beyond any use; the predictions times 1e38 would overflow


def guide(
    model_fn: ConditionalModelFn,
    y: Any,
    null: Any,
    scale: float | int | Float[Array, ""],
    interval: Sequence[float | int] = (0.0, 1.0),
    channels: int | None = None,
) -> ModelFn:
    """A function of (x, t) for the samplers: null + scale (y - null), of the predictions given y and given null.

        sample_ode(ip, guide(model, y, model.null_condition(y), scale=4.0), z)

    Whether the model predicts velocity, noise or score makes no difference: each is an affine function of the
    other at (x, t). Scale 1 is the conditional model itself, 0 the unconditional one; either costs one
    forward pass of b samples. Any other scale costs one of 2 b samples, in which the two copies of a sample
    lie side by side, so that a batch divided over devices stays where it is.

    Args:
        y: the condition, an array (b, ...) or a tree of such: labels, the tokens of texts, a `Text`.
        null: what stands for no condition, as it was in training, of y's structure and shapes or broadcast to them:
            the null class, `ZigMa.null_condition(y)`; the tokens of the empty caption.
        scale: of guidance; an array may be traced, is not checked, and always costs both predictions.
        interval: (lo, hi): samples with lo <= t <= hi are guided, data being at t = 1; for the others the model
            is the conditional one. While no sample of the batch is inside, the pass is one of b samples. The
            default guides always.
        channels: only the first so many channels of the prediction are guided, the others are those given y: 3 as the
            official samplers of DiT and SiT have it, whose published results were made so. None: all.

    Raises:
        ConfigError: a scale that is not finite or beyond ±10,000, an interval that is empty or outside [0, 1], null
            that does not fit y, channels below 1.
    """
    check_guidance(scale, interval)
    if channels is not None and channels < 1:
        raise ConfigError(f"guidance channels = {channels}: must be at least 1, or None for all")
    if jax.tree.structure(y) != jax.tree.structure(null):
        raise ConfigError(f"null is {jax.tree.structure(null)}, and y is {jax.tree.structure(y)}: they must be alike")
    y, null = jax.tree.transpose(jax.tree.structure(y), jax.tree.structure((0, 0)), jax.tree.map(_alike, y, null))
    lo, hi = interval
    always = lo <= 0 and hi >= 1  # whatever rounding does to the ends

    def is_guided(t: Float[Array, " b"]) -> Bool[Array, " b"]:
        return jnp.full(t.shape, True) if always else (lo <= t) & (t <= hi)

    def conditional(x: Array, t: Array) -> Array:
        return at_least_float32("the output of model_fn", model_fn(x, t, y))

    def guided(x: Array, t: Array) -> Array:
        both_conditions = jax.tree.map(_interleave, y, null)
        both = evaluate(lambda x, t: model_fn(x, t, both_conditions), _interleave(x, x), _interleave(t, t))
        given_y, given_null = jnp.moveaxis(both.reshape(-1, 2, *both.shape[1:]), 1, 0)
        mixed = given_null + scale * (given_y - given_null)
        if channels is not None:
            mixed = jnp.concatenate([mixed[..., :channels], given_y[..., channels:]], axis=-1)
        return _where(is_guided(t), mixed, given_y)

    known = not isinstance(scale, jax.Array)
    if known and scale == 1:
        return lambda x, t: model_fn(x, t, y)
    if known and scale == 0 and channels is None:
        return lambda x, t: model_fn(x, t, jax.tree.map(lambda a, b: _where(is_guided(t), a, b), null, y))
    if always:
        return guided
    return lambda x, t: jax.lax.cond(jnp.any(is_guided(t)), guided, conditional, x, t)


def autoguide(
    model_fn: ConditionalModelFn,
    weak_fn: ConditionalModelFn,
    y: Any,
    scale: float | int,
    interval: Sequence[float | int] = (0.0, 1.0),
) -> ModelFn:
    """A function of (x, t) for the samplers: weak + scale (model - weak), both given y.

    "Guiding a Diffusion Model with a Bad Version of Itself" (Karras et al., arXiv 2406.02507): the difference from a
    model of the same kind that was trained less, or is smaller, points away from the errors that both make, whether or
    not there is a condition.

    Args:
        weak_fn: the worse model; what it predicts is what `model_fn` predicts.
        y: the condition of both, or None.
        scale: of guidance; 1 is the model itself.
        interval: as of `guide`.

    Raises ConfigError as `guide`.
    """
    check_guidance(scale, interval)
    lo, hi = interval

    def guided(x: Array, t: Array) -> Array:
        strong = at_least_float32("the output of model_fn", model_fn(x, t, y))
        weak = at_least_float32("the output of weak_fn", weak_fn(x, t, y))
        return _where((lo <= t) & (t <= hi) | (lo <= 0 and hi >= 1), weak + scale * (strong - weak), strong)

    return guided if scale != 1 else lambda x, t: model_fn(x, t, y)


def check_guidance(scale: float | int | Array, interval: Sequence[float | int]) -> None:
    """The rules of `guide`'s numbers; raises ConfigError."""
    if not isinstance(scale, jax.Array) and (not math.isfinite(scale) or abs(scale) > _LARGEST):
        raise ConfigError(f"guidance scale = {scale!r} must be finite and at most {_LARGEST:,} in magnitude; 1 is none")
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
        raise ConfigError(f"guidance interval = {tuple(interval)} must be (lo, hi) with 0 <= lo < hi <= 1")


def _alike(y: Array | np.ndarray, null: Array | np.ndarray | int) -> tuple[Array, Array]:
    """Both as arrays of one shape and dtype. Raises ConfigError where null does not broadcast to y."""
    y, null = jnp.asarray(y), jnp.asarray(null)
    try:
        if jnp.issubdtype(y.dtype, jnp.integer) and jnp.issubdtype(null.dtype, jnp.integer):
            y = y.astype(jnp.promote_types(y.dtype, null.dtype))  # class 256 is none of uint8
        return y, jnp.broadcast_to(null.astype(y.dtype), y.shape)
    except ValueError as error:
        raise ConfigError(f"null has shape {null.shape}, which does not broadcast to y's, {y.shape}") from error


def _interleave(a: Array, b: Array) -> Array:
    """(b, ...) and (b, ...) -> (2 b, ...): a[0], b[0], a[1], b[1], …"""
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


def _where(condition: Bool[Array, " b"], a: Array, b: Array) -> Array:
    """jnp.where with one condition a sample."""
    return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

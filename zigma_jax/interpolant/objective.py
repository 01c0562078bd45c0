"""The training objective, and what a model's output means (`transport/transport.py` in the original)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zigma_jax.errors import ConfigError
from zigma_jax.interpolant.draws import Keys, fold_in_each, normal_like, per_sample_keys
from zigma_jax.interpolant.path import PATHS, Coefficients

PREDICTIONS = ("velocity", "noise", "score", "data")
WEIGHTINGS = (None, "velocity", "likelihood")
TIME_SAMPLINGS = ("uniform", "logit_normal")
INTERVALS = ("train", "sample", "sde")
_LEAST_SIGMA = 0.05  # in the weight of a data prediction's loss, 1 / sigma^2, as JiT has it
_NEAREST = 1e-6  # to a singular end: float32 has 16 numbers between 1 - 1e-6 and 1

ModelFn = Callable[[Array, Array], Array]
"""model_fn(x (b, ...), t (b,)) -> prediction (b, ...): a plain function; it may close over traced values."""
Floats = Array | np.ndarray


class Fields(NamedTuple):
    """One model evaluation, read in three ways; all (b, ...), at least float32."""

    velocity: Float[Array, "b ..."]
    score: Float[Array, "b ..."]
    noise: Float[Array, "b ..."]


@dataclasses.dataclass(frozen=True)
class Interpolant:
    """A path from noise (t = 0) to data (t = 1), what the model predicts on it, how its loss is weighted.

    Hashable, so it can be a static argument of jit. Arithmetic is in float32 or, for float64 input, in
    float64; the model sees x in the dtype it was given, and t in float32.

    Attributes:
        path: "linear" | "gvp" | "vp", see `zigma_jax.interpolant.path`.
        prediction: "velocity" | "noise" | "score" | "data": what model_fn returns. Of the last the loss is still
            that of the velocity ("Back to Basics: Let Denoising Generative Models Denoise", arXiv 2511.13720).
        weighting: None | "velocity" | "likelihood": factor on the squared error of noise: 1, (g / sigma)^2 or
            g / sigma^2, with g the path's diffusivity. A velocity loss is never weighted, as in the
            original; and that of a data prediction is one.
        time_sampling: "uniform" | "logit_normal": distribution of t in training, over `interval("train")`.
            The second is sigmoid(logit_mean + logit_std * normal) (Stable Diffusion 3, arXiv 2403.03206,
            whose t runs the other way: here a positive mean is closer to data).
        logit_mean, logit_std: of time_sampling="logit_normal".
        train_eps, sample_eps: how far from a singular end of [0, 1] training and sampling stay, where path
            and prediction have one (see `interval`). None: 1e-3, but 1e-5 for training on vp.

    Raises:
        ConfigError: a field has a value outside those above; eps is not in [0, 0.5); logit_mean is beyond ±100,
            or logit_std not in (0, 100].
    """

    path: str = "linear"
    prediction: str = "velocity"
    weighting: str | None = None
    time_sampling: str = "uniform"
    logit_mean: float | int = 0.0
    logit_std: float | int = 1.0
    train_eps: float | int | None = None
    sample_eps: float | int | None = None

    def __post_init__(self):
        check_choice("path", self.path, PATHS)
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_choice("weighting", self.weighting, WEIGHTINGS)
        check_choice("time_sampling", self.time_sampling, TIME_SAMPLINGS)
        if not abs(self.logit_mean) <= 100:
            raise ConfigError(f"logit_mean = {self.logit_mean!r} must be in [-100, 100]")
        if not 0 < self.logit_std <= 100:
            raise ConfigError(f"logit_std = {self.logit_std!r} must be positive and at most 100")
        for name in ("train_eps", "sample_eps"):
            eps = getattr(self, name)
            if eps is not None and not 0 <= eps < 0.5:
                raise ConfigError(f"{name} = {eps!r} must lie in [0, 0.5)")

    # --- times ---

    def interval(
        self, use: str = "sample", *, diffusion: str = "sigma", last_step_size: float | int = 0.0
    ) -> tuple[float, float]:
        """The range (t0, t1) of t: the original's `check_interval`, for use = "train" | "sample" | "sde".

        Velocity on linear and gvp is regular on all of [0, 1]. Their noise and score predictions keep eps
        away from both ends; data predictions, and vp, keep eps away from t = 1. An SDE ("sde", with
        its `diffusion` form) stops at 1 - last_step_size if that is not 0.

        Raises ConfigError for "sample" and "sde" if nothing is left of the range, or if it comes so near to a
        singular end that float32 cannot tell them apart.

        One difference from the original: there the SBDM diffusion of a velocity model starts at t = 0, where
        it is infinite; here at eps.
        """
        check_choice("use", use, INTERVALS)
        eps = self.train_eps if use == "train" else self.sample_eps
        if eps is None:
            eps = 1e-5 if use == "train" and self.path == "vp" else 1e-3
        regular = self.path != "vp" and self.prediction == "velocity"
        finite = self.prediction in ("velocity", "data") and not (use == "sde" and diffusion == "sbdm")
        starts_at_0 = self.path == "vp" or finite
        t0 = 0.0 if starts_at_0 else eps
        t1 = 1.0 if regular else 1.0 - eps
        if use == "sde" and last_step_size != 0:
            t1 = 1.0 - last_step_size
            if not t0 + _NEAREST <= t1 <= 1 - _NEAREST:
                raise ConfigError(
                    f"last_step_size = {last_step_size!r}: the last step would begin at {t1:g}, and this path, "
                    f"prediction and diffusion begin at {t0:g}; it must be in [{_NEAREST:g}, {1 - t0:g})"
                )
        if use != "train" and not ((starts_at_0 or t0 >= _NEAREST) and (regular or t1 <= 1 - _NEAREST)):
            size = (
                f"sample_eps = {eps!r} and last_step_size = {last_step_size!r}"
                if use == "sde"
                else f"sample_eps = {eps!r}"
            )
            raise ConfigError(
                f"{size}: path = {self.path!r} with prediction = {self.prediction!r} is infinite at an end of [0, 1]; "
                f"samplers must stay at least {_NEAREST:g} away from it"
            )
        return float(t0), float(t1)

    def coefficients(self, t: Float[Floats, "b"], ndim: int = 1) -> Coefficients:
        """The path at times t; each field has `ndim` axes, (b, 1, ...), to broadcast against a batch."""
        t = at_least_float32("t", t)
        return PATHS[self.path](t.reshape(t.shape + (1,) * (ndim - 1)))

    # --- training ---

    def sample_noise_and_time(
        self, key: Keys, x1: Float[Floats, "b *shape"]
    ) -> tuple[Float[Array, "b *shape"], Float[Array, "b"]]:
        """Draw what a training step needs for x1: noise x0 (b, ...) ~ N(0, 1) and t (b,).

        key: one PRNG key, or one a sample (b,). Sample i uses `fold_in(key, i)`, or its own key, and nothing
        else, so neither the batch it is in nor the device it is on changes its draw.
        """
        x1 = at_least_float32("x1", x1)
        keys = per_sample_keys(key, x1.shape[0])
        x0 = normal_like(fold_in_each(keys, 0), x1)
        t_keys = fold_in_each(keys, 1)
        if self.time_sampling == "uniform":
            u = jax.vmap(lambda k: jax.random.uniform(k, dtype=x1.dtype))(t_keys)
        else:
            u = jax.vmap(lambda k: jax.random.normal(k, dtype=x1.dtype))(t_keys)
            u = jax.nn.sigmoid(self.logit_mean + self.logit_std * u)
        t0, t1 = self.interval("train")
        return x0, t0 + (t1 - t0) * u

    def loss(self, model_fn: ModelFn, x1: Float[Floats, "b ..."], key: Keys) -> Float[Array, "b"]:
        """Loss of each sample at a random time, see `loss_at`; key as in `sample_noise_and_time`."""
        x0, t = self.sample_noise_and_time(key, x1)
        return self.loss_at(model_fn, x1, x0, t)

    def loss_at(
        self,
        model_fn: ModelFn,
        x1: Float[Floats, "b *shape"],
        x0: Float[Floats, "b *shape"],
        t: Float[Floats, "b"],
    ) -> Float[Array, "b"]:
        """Loss of each sample, the mean over its elements, at given data x1, noise x0 and time t.

        velocity: |v - (alpha' x1 + sigma' x0)|^2; noise: w |e - x0|^2; score: w |sigma s + x0|^2; data: the velocity's,
        |wronskian / sigma (d - x1)|^2, with sigma no smaller than 0.05.

        Raises:
            ValueError: shapes of x1 and x0, t or the model's output do not fit; an input is not floating
            point.
        """
        dtype = jnp.asarray(x1).dtype
        x1, x0 = at_least_float32("x1", x1), at_least_float32("x0", x0)
        if x1.shape != x0.shape:
            raise ValueError(f"x1 has shape {x1.shape} and x0 has shape {x0.shape}; they must be equal")
        check_time(t, x1)
        c = self.coefficients(t, x1.ndim)
        output = evaluate(model_fn, (c.alpha * x1 + c.sigma * x0).astype(dtype), t)
        if self.prediction == "velocity":
            error = output - (c.d_alpha * x1 + c.d_sigma * x0)
        elif self.prediction == "noise":
            error = self._weight(c) * (output - x0)
        elif self.prediction == "data":
            error = c.wronskian / jnp.maximum(c.sigma, _LEAST_SIGMA) * (output - x1)
        else:
            error = self._weight(c) * (output * c.sigma + x0)
        return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))

    def _weight(self, c: Coefficients) -> Array | float:
        """Square root of the weight of the squared noise error."""
        if self.weighting == "velocity":
            return c.diffusivity / c.sigma
        if self.weighting == "likelihood":
            return jnp.sqrt(c.diffusivity) / c.sigma
        return 1.0

    # --- what the model's output means ---

    def fields(self, model_fn: ModelFn, x: Float[Floats, "b ..."], t: Float[Floats, "b"]) -> Fields:
        """Velocity, score and noise at (x, t), from one evaluation of the model whatever it predicts.

        Raises:
            ValueError: t or the model's output does not fit x; an input is not floating point.
        """
        check_time(t, x)
        output = evaluate(model_fn, x, t)
        x = at_least_float32("x", x)
        c = self.coefficients(t, x.ndim)
        if self.prediction == "velocity":
            noise = (c.d_alpha * x - c.alpha * output) / c.wronskian
            return Fields(velocity=output, score=-noise / c.sigma, noise=noise)
        if self.prediction == "data":
            noise = (x - c.alpha * output) / c.sigma
            velocity = (c.d_sigma * x + c.wronskian * output) / c.sigma
            return Fields(velocity=velocity, score=-noise / c.sigma, noise=noise)
        score, noise = (output, -c.sigma * output) if self.prediction == "score" else (-output / c.sigma, output)
        return Fields(velocity=c.growth * x + c.diffusivity * score, score=score, noise=noise)

    def drift(self, model_fn: ModelFn, x: Float[Floats, "b *shape"], t: Float[Floats, "b"]) -> Float[Array, "b *shape"]:
        """Velocity dx/dt of the probability-flow ODE, (b, ...)."""
        return self.fields(model_fn, x, t).velocity

    def score(self, model_fn: ModelFn, x: Float[Floats, "b *shape"], t: Float[Floats, "b"]) -> Float[Array, "b *shape"]:
        """Gradient in x of the log density of x_t, (b, ...)."""
        return self.fields(model_fn, x, t).score


def evaluate(model_fn: ModelFn, x: Floats, t: Floats) -> Array:
    """model_fn(x, t) in at least float32; a ValueError if its shape is not x's."""
    output = model_fn(jnp.asarray(x), at_least_float32("t", t))
    if output.shape != x.shape:
        raise ValueError(f"model_fn returned shape {output.shape} for x of shape {x.shape}; they must be equal")
    return at_least_float32("the output of model_fn", output)


def at_least_float32(name: str, x: Any) -> Array:
    """x as a jax array of float32, or of float64 if it is that already."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {x.dtype}; it must be floating point")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_time(t: Floats, x: Floats) -> None:
    """One time a sample."""
    if jnp.shape(t) != jnp.shape(x)[:1]:
        raise ValueError(f"t has shape {jnp.shape(t)}; for x of shape {jnp.shape(x)} it must be {jnp.shape(x)[:1]}")


def check_choice(name: str, value: object, allowed) -> None:
    """A ConfigError that lists what is allowed, unless the value is one of them."""
    if value not in list(allowed):
        raise ConfigError(f"{name} = {value!r} is not one of: {', '.join(map(repr, allowed))}")

"""Drawing samples from trained parameters: what previews, `zigma_jax.sample` and evaluations share."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, Shaped

from zigma_jax.errors import ConfigError
from zigma_jax.interpolant import Interpolant, guide, ode, sample_ode, sample_sde
from zigma_jax.interpolant.draws import fold_in_each
from zigma_jax.models.families import BackboneConfig, Model
from zigma_jax.models.placement import on_mesh
from zigma_jax.models.text import Text
from zigma_jax.training.config import SampleConfig, check_guided
from zigma_jax.training.sharding import batch_sharding, put, replicated, samples_over
from zigma_jax.training.state import Params

Labels = Int[np.ndarray, " n"] | None
Condition = Labels | Text
"""What samples are drawn for: labels (n,), the tokens of n texts, or nothing."""
Sampler = Callable[[Params, Int[np.ndarray, " n"], Condition], Float[Array | np.ndarray, "n ..."]]
Encoder = Callable[[Params, Float[np.ndarray, "n ..."], Condition], Float[Array, "n ..."]]


def make_sampler(
    graphdef: Any, interpolant: Interpolant, cfg: SampleConfig, mesh: Mesh, seed: int, null: Text | None = None
) -> Sampler:
    """A function `(params, indices (n,), condition of n samples) -> samples (n, …)`, float32, on the devices.

    null: what guidance leads away from, if samples are drawn for texts: as many tokens as these have.

    The work is spread over the mesh, on which the parameters have to be. Sample i starts from noise drawn from
    (seed, i) alone, and so is an SDE's noise on the way: batch size and device count never change it. The
    function compiles once for each n. Guidance that the model was not trained for is a ConfigError when it is called.

    Raises:
        ConfigError: as `seed_key`.
    """
    key = seed_key(seed)

    def sample(params, indices, y, null):
        model = nnx.merge(graphdef, params)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
        z = jax.vmap(lambda key: jax.random.normal(key, model.cfg.sample_shape))(keys)
        z = jax.lax.with_sharding_constraint(z, batch_sharding(mesh))
        if not cfg.sde_method:
            return _follow_ode(interpolant, cfg, model, z, y, null)
        return sample_sde(
            interpolant,
            _guided(model, y, null, cfg),
            z,
            fold_in_each(keys, 1),
            method=cfg.sde_method,
            steps=cfg.steps,
            shift=cfg.shift,
            diffusion=cfg.diffusion,
            diffusion_norm=cfg.diffusion_norm,
            last_step=None if cfg.last_step == "none" else cfg.last_step,
            last_step_size=cfg.last_step_size,
        )

    return _on_mesh(sample, np.int32, mesh, null)


def make_encoder(
    graphdef: Any, interpolant: Interpolant, cfg: SampleConfig, mesh: Mesh, null: Text | None = None
) -> Encoder:
    """The way back: a function `(params, images (n, …), condition of n samples) -> noise (n, …)`, float32.

    images: pixels in [-1, 1], or normalized latents. null: as for `make_sampler`.

    Along the ODE of `cfg`, guidance included, from data to noise; otherwise as `make_sampler`.

    Raises:
        ConfigError: the method is an SDE's, which has no way back.
    """
    if cfg.sde_method:
        methods = ", ".join(ode.METHODS)
        raise ConfigError(f"config.sample.method = {cfg.method!r}: an SDE can't be run backwards; use one of {methods}")

    def encode(params, images, y, null):
        return _follow_ode(interpolant, cfg, nnx.merge(graphdef, params), images, y, null, reverse=True)

    return _on_mesh(encode, np.float32, mesh, null)


def _follow_ode(interpolant: Interpolant, cfg: SampleConfig, model: Model, x, y, null, reverse: bool = False):
    return sample_ode(
        interpolant,
        _guided(model, y, null, cfg),
        x,
        method=cfg.method,
        steps=cfg.steps,
        shift=cfg.shift,
        atol=cfg.atol,
        rtol=cfg.rtol,
        reverse=reverse,
    )


def _guided(model: Model, y, null: Text | None, cfg: SampleConfig):
    """The model as a function of x and t."""
    check_guided(model.cfg, cfg.guidance)
    if cfg.guidance == 1:
        return lambda x, t: model(x, t, y)
    no_condition = model.null_condition(y) if null is None else null
    return guide(model, y, no_condition, cfg.guidance, cfg.guidance_interval, cfg.guidance_channels)


def _on_mesh(function, dtype, mesh: Mesh, null: Text | None):
    """`function(params, values, y, null)`, jitted, of arrays on the host that are divided over the mesh."""
    sharding, null = batch_sharding(mesh), put(null, replicated(mesh))

    @jax.jit
    def run(*args):
        with on_mesh(mesh):
            return function(*args)

    def place(values):
        """On the mesh, filled up so that every device has as many."""
        parts = samples_over(mesh)
        filled_up = np.arange(-(-len(values) // parts) * parts) % len(values)
        return put(values[filled_up], sharding)

    def draw(params, values, y=None):
        results = run(params, place(np.asarray(values, dtype)), jax.tree.map(place, y), null)
        return results if len(results) == len(values) else results[: len(values)]

    return draw


def batches(count: int, batch_size: int, start: int = 0) -> Iterator[tuple[Int[np.ndarray, " n"], int]]:
    """Numbers start … count − 1 in batches of one size, and how many of each are asked for: the last is filled up."""
    for first in range(start, count, batch_size):
        yield np.arange(first, first + batch_size), min(batch_size, count - first)


def choose_labels(model: BackboneConfig, indices: Int[np.ndarray, " n"], labels: Sequence[int] = ()) -> Labels:
    """The label of each sample: `labels` again and again, by default every class in turn; None without classes.

    Raises:
        ConfigError: labels for a model without classes, or out of range.
    """
    if not model.num_classes:
        if labels:
            raise ConfigError(f"labels = {list(labels)}: the model has no classes (model.num_classes = 0)")
        return None
    most = model.num_classes - 1 + model.null_class
    if wrong := [label for label in labels if not 0 <= label <= most]:
        raise ConfigError(f"labels = {wrong}: must be in 0 … {most} (model.num_classes = {model.num_classes})")
    return np.asarray(labels or range(model.num_classes), np.int32)[indices % (len(labels) or model.num_classes)]


def seed_key(seed: int) -> Key[Array, ""]:
    """The random key of a seed, `jax.random.key(seed)` of seeds below 2³², and another one for every other seed.

    Raises:
        ConfigError: a seed that is negative, or 2⁶³ or more.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed = {seed}: must be at least 0 and less than 2**63")
    # `jax.random.key` would look at the lower 32 bits alone.
    return jax.random.wrap_key_data(jnp.array(divmod(seed, 2**32), jnp.uint32), impl="threefry2x32")


def on_host(array: Shaped[Array | np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """An array on this host, whole, from the devices of all processes."""
    if jax.process_count() > 1 and isinstance(array, jax.Array):
        from jax.experimental import multihost_utils

        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)

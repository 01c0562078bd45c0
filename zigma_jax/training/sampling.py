"""Drawing samples from trained parameters: what previews and `zigma_jax.sample` share."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from zigma_jax.interpolant import Interpolant, sample_ode
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.training.config import SampleConfig
from zigma_jax.training.sharding import batch_sharding
from zigma_jax.training.state import Params

Sampler = Callable[[Params, Int[np.ndarray, " n"], Int[np.ndarray, " n"] | None], Float[np.ndarray, "n ..."]]


def make_sampler(graphdef: Any, interpolant: Interpolant, cfg: SampleConfig, mesh: Mesh, seed: int) -> Sampler:
    """A function `(params, indices (n,), labels (n,) | None) -> samples (n, …)`, float32, on every host.

    The work is spread over the mesh, on which the parameters have to be. Sample i starts from noise drawn from
    (seed, i) alone: batch size and device count never change it. The function compiles once for each n.
    """
    sharding = batch_sharding(mesh)

    @jax.jit
    def sample(params, indices, labels):
        model = nnx.merge(graphdef, params)
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)
        z = jax.vmap(lambda key: jax.random.normal(key, model.cfg.sample_shape))(keys)
        return sample_ode(
            interpolant,
            lambda x, t: model(x, t, labels),
            jax.lax.with_sharding_constraint(z, sharding),
            method=cfg.method,
            steps=cfg.steps,
            atol=cfg.atol,
            rtol=cfg.rtol,
        )

    def place(values):
        """On the mesh, filled up so that every device has as many."""
        return jax.device_put(np.resize(values, -(-len(values) // mesh.size) * mesh.size).astype(np.int32), sharding)

    def on_mesh(params, indices, labels=None):
        samples = sample(params, place(indices), None if labels is None else place(labels))
        return _gather(samples)[: len(indices)]

    return on_mesh


def batches(count: int, batch_size: int) -> Iterator[tuple[Int[np.ndarray, " n"], int]]:
    """Indices 0 … count − 1 in batches of one size, and how many of each batch are asked for: the last is filled up."""
    for first in range(0, count, batch_size):
        yield np.arange(first, first + batch_size), min(batch_size, count - first)


def choose_labels(
    model: ZigMaConfig, indices: Int[np.ndarray, " n"], labels: Sequence[int] = ()
) -> Int[np.ndarray, " n"] | None:
    """The label of each sample: `labels` again and again, by default every class in turn; None without classes.

    Raises:
        ValueError: labels for a model without classes, or out of range.
    """
    if not model.num_classes:
        if labels:
            raise ValueError(f"labels = {list(labels)}: the model has no classes (model.num_classes = 0)")
        return None
    most = model.num_classes - 1 + model.null_class
    if wrong := [label for label in labels if not 0 <= label <= most]:
        raise ValueError(f"labels = {wrong}: must be in 0 … {most} (model.num_classes = {model.num_classes})")
    return np.asarray(labels or range(model.num_classes), np.int32)[indices % (len(labels) or model.num_classes)]


def _gather(samples: Float[Array, "n ..."]) -> Float[np.ndarray, "n ..."]:
    """All samples on this host, from all processes."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        samples = multihost_utils.process_allgather(samples, tiled=True)
    return np.asarray(samples)

"""What training carries from step to step, and the optimiser that updates it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jax.sharding import Mesh

from zigma_jax.models.families import BackboneConfig, build
from zigma_jax.training.config import OptimizerConfig
from zigma_jax.training.sharding import state_shardings

Params = dict[str, Any]  # nested by attribute name, arrays at the leaves; `nnx.merge(graphdef, params)` is the model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a checkpoint holds of the training itself: arrays, or their `ShapeDtypeStruct`s.

    Attributes:
        step: batches seen, int32 as the two counters.
        skipped: how many of them were skipped for a non-finite loss or gradient.
        skipped_in_a_row: how many of the last ones.
        params: the parameters, float32.
        ema: their exponential moving average.
        averages: their power-function averages, by `train.ema_lengths`.
        opt_state: optax's.
    """

    step: Any
    skipped: Any
    skipped_in_a_row: Any
    params: Params
    ema: Params
    opt_state: Any
    averages: dict[str, Params] = dataclasses.field(default_factory=dict)


def power_decay(length: float, step: Any) -> Any:
    """What a power-function average keeps of itself at training step `step`, counted from 1.

    length: the standard deviation of the average's weights over the steps, as a share of all steps so far: 0.1 looks
        as far back at every step, in proportion (Karras et al., "Analyzing and Improving the Training Dynamics of
        Diffusion Models", arXiv 2312.02696, section 3.1).
    """
    inverse = length**-2.0
    exponent = max(root.real for root in np.roots([1, 7, 16 - inverse, 12 - inverse]) if abs(root.imag) < 1e-9)
    return (1 - 1 / step) ** (exponent + 1)


def learning_rate(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant or cosine to 0 at `steps`. Update n (from 0) uses schedule(n); none is at 0."""
    after = (
        optax.constant_schedule(cfg.learning_rate)
        if cfg.schedule == "constant"
        else optax.cosine_decay_schedule(cfg.learning_rate, max(steps - cfg.warmup_steps, 1))
    )
    warmup = optax.linear_schedule(cfg.learning_rate / (cfg.warmup_steps + 1), cfg.learning_rate, cfg.warmup_steps)
    return optax.join_schedules([warmup, after], [cfg.warmup_steps])


def make_optimizer(cfg: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW, or Muon for the blocks' matrices."""
    rate = learning_rate(cfg, steps)
    if cfg.algorithm == "adamw":
        rule = optax.adamw(rate, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay, mask=decay_mask)
    else:
        matrices: Any = block_matrices
        rule = optax.contrib.muon(
            rate,
            eps=cfg.eps,
            weight_decay=cfg.weight_decay,
            adam_b1=cfg.b1,
            adam_b2=cfg.b2,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=0.2,  # the root mean square of AdamW's updates: one learning rate serves both
        )
    return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), rule)


def block_matrices(params: Params) -> Any:
    """Which axes are a matrix's (in, out), of the kernels in blocks, layer by layer; None for all that are none."""
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

    def of(path, leaf):
        inside = leaf.ndim == 3 and path[0].key.endswith("blocks") and path[-1].key == "kernel"
        return matrix if inside else None

    return jax.tree_util.tree_map_with_path(of, params)


def decay_mask(params: Params) -> Any:
    """True for the kernels of linear layers alone: no decay on A_log, D, biases, norms, embeddings, convolutions."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def initial_state(params: Params, optimizer: optax.GradientTransformation, lengths: Sequence[float] = ()) -> TrainState:
    """The training state at step 0 of a model with these parameters; lengths: `train.ema_lengths`."""
    zero = jnp.zeros((), jnp.int32)

    def copy():
        return jax.tree.map(jnp.copy, params)

    averages = {average_name(length): copy() for length in lengths}
    return TrainState(zero, zero, zero, params, copy(), optimizer.init(params), averages)


def average_name(length: float) -> str:
    """Of a power-function average in the state, and in a checkpoint."""
    return f"{length:g}"


def make_state(
    model_cfg: BackboneConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    lengths: Sequence[float] = (),
):
    """The model's graphdef, its training state at step 0 (made in place, sharded) and that state's shape.

    Returns:
        (graphdef, init, abstract_state): `init()` makes the state on the devices; `abstract_state` has
        shapes, dtypes and shardings, which is what restoring a checkpoint needs.
    """

    def init() -> TrainState:
        model = build(model_cfg, rngs=nnx.Rngs(seed))
        return initial_state(nnx.to_pure_dict(nnx.state(model, nnx.Param)), optimizer, lengths)

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(model_cfg, rngs=nnx.Rngs(0))))
    shapes = jax.eval_shape(init)
    shardings = state_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    return graphdef, jax.jit(init, out_shardings=shardings), abstract

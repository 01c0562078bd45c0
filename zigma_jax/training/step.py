"""One training step, as a pure function of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from zigma_jax.interpolant import Interpolant
from zigma_jax.models.placement import gathered, on_mesh
from zigma_jax.training.conditions import UNCONDITIONAL, Conditions, labels_of
from zigma_jax.training.config import RunConfig
from zigma_jax.training.samples import PIXELS, Samples
from zigma_jax.training.sharding import batch_sharding, put, replicated
from zigma_jax.training.state import Params, TrainState, learning_rate, power_decay

Batch = dict[str, Array]  # what `Samples` and `Conditions` read: "image" (B, …) in [-1, 1], "label" (B,), …
Metrics = dict[str, Array]  # scalars


def sample_keys(seed: int | Int[Array, ""], step: Int[Array, ""], batch_size: int) -> Key[Array, " b"]:
    """One key a sample of the global batch, from (seed, step, position) alone: the same on any number of devices."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch_size))


def batch_loss(
    graphdef: Any,
    interpolant: Interpolant,
    params: Params,
    batch: Batch,
    keys: Key[Array, " b"],
    samples: Samples = PIXELS,
    conditions: Conditions = UNCONDITIONAL,
) -> Float[Array, ""]:
    """Mean interpolant loss of a batch, of which `samples` and `conditions` make what the model is trained on.

    Each sample draws its latent, noise, time, and the dropout of its condition and path from its own key.
    """
    # Blocks gather their own weights, layer by layer.
    params = {name: value if name.endswith("blocks") else gathered(value) for name, value in params.items()}
    model = nnx.merge(graphdef, params)
    noise_keys, condition_keys, path_keys = jax.vmap(lambda k: jax.random.split(k, 3))(keys).T
    y = conditions(batch, condition_keys)
    losses = interpolant.loss(lambda x, t: model(x, t, y, key=path_keys), samples(batch, keys), noise_keys)
    return jnp.mean(losses)


class TrainStep:
    """`make_update`'s step with the run's seed, jitted: (state, batch) -> (state, metrics). The state is donated.

    `state` (abstract will do) gives the shardings. Every device gets a copy of the networks in `samples` and
    `conditions`.
    """

    def __init__(
        self,
        update: Callable[..., tuple[TrainState, Metrics]],
        config: RunConfig,
        mesh: Mesh,
        state: TrainState,
        samples: Samples,
        conditions: Conditions,
    ):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        self._step = jax.jit(
            lambda state, batch, networks: update(state, batch, config.train.seed, *networks),
            donate_argnums=0,
            in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
            out_shardings=(shardings, replicated(mesh)),
        )
        self._networks, self._everywhere = (samples, conditions), replicated(mesh)
        self._placed: Any = None
        self._compiled: Any = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if self._placed is None:
            self._placed = put(self._networks, self._everywhere)
        return (self._compiled or self._step)(state, batch, self._placed)

    def compile(self, state: TrainState, batch: dict[str, Any]) -> Any:
        """Compiles the step for arrays like these, or `jax.ShapeDtypeStruct`s with shardings; calls use it from now on.

        Returns XLA's program, a `jax.stages.Compiled`.
        """
        networks = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=self._everywhere), self._networks
        )
        self._compiled = self._step.lower(state, batch, networks).compile()
        return self._compiled


def make_train_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    config: RunConfig,
    mesh: Mesh,
    state: TrainState,
    samples: Samples = PIXELS,
    conditions: Conditions | None = None,
) -> TrainStep:
    """The training step of a configuration on a mesh; see `TrainStep`."""
    update = make_update(graphdef, optimizer, config, mesh)
    return TrainStep(update, config, mesh, state, samples, conditions or labels_of(config))


def make_update(
    graphdef: Any, optimizer: optax.GradientTransformation, config: RunConfig, mesh: Mesh | None = None
) -> Callable[..., tuple[TrainState, Metrics]]:
    """One step as a pure function of state, batch, the seed of its draws, and how the batch becomes what is trained on.

    A step whose loss or gradient is not finite changes nothing but the counters `step` and `skipped`.
    mesh: that the model's weights and tokens are placed on (`zigma_jax.models.placement`); None leaves that to XLA.
    """
    cfg = config.train
    schedule = learning_rate(config.optimizer, cfg.steps)

    def loss_and_gradient(params, batch, keys, samples, conditions):
        def loss(params, batch, keys):
            return batch_loss(graphdef, config.interpolant, params, batch, keys, samples, conditions)

        if cfg.accumulate == 1:
            return jax.value_and_grad(loss)(params, batch, keys)

        def add_part(total, part):
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, *part)), None

        # Part i takes every accumulate-th sample, so that each stays spread over all devices.
        parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, cfg.accumulate, *a.shape[1:]), 1, 0), (batch, keys))
        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add_part, zero, parts)
        return jax.tree.map(lambda a: a / cfg.accumulate, total)

    def update(
        state: TrainState,
        batch: Batch,
        seed: int | Int[Array, ""],
        samples: Samples = PIXELS,
        conditions: Conditions | None = None,
    ) -> tuple[TrainState, Metrics]:
        keys = sample_keys(seed, state.step, cfg.batch_size)
        with on_mesh(mesh):
            loss, gradient = loss_and_gradient(state.params, batch, keys, samples, conditions or labels_of(config))
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        applied = (state.step - state.skipped).astype(jnp.float32)
        decay = jnp.minimum(cfg.ema_decay, (1 + applied) / (10 + applied))

        def average(decay, tree):
            return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, tree, params)

        averages = {name: average(power_decay(float(name), applied + 1), a) for name, a in state.averages.items()}

        def if_finite(new, old):
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        new_state = TrainState(
            step=state.step + 1,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
            params=if_finite(params, state.params),
            ema=if_finite(average(decay, state.ema), state.ema),
            opt_state=if_finite(opt_state, state.opt_state),
            averages=if_finite(averages, state.averages),
        )
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "lr": schedule(state.step - state.skipped),
            "skipped": new_state.skipped,
            "skipped_in_a_row": new_state.skipped_in_a_row,
        }
        return new_state, metrics

    return update


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether every number in the tree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))

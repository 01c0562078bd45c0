"""A backbone that is not of the package, and classes that miss something."""

import dataclasses

import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class MixConfig:
    sample_shape: tuple[int, ...] = (8, 8, 3)
    width: int = 8
    num_classes: int = 0
    null_class: bool = False
    context_size: int = 0


class Mix(nnx.Module):
    """One hidden layer of all pixels, and the time."""

    Config = MixConfig

    def __init__(self, cfg: MixConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        values = cfg.sample_shape[0] * cfg.sample_shape[1] * cfg.sample_shape[2]
        self.linear_in = nnx.Linear(values + 1, cfg.width, rngs=rngs)
        self.linear_out = nnx.Linear(cfg.width, values, rngs=rngs)

    def __call__(self, x, t, y=None, *, key=None):
        flat = jnp.concatenate([x.reshape(len(x), -1), t[:, None]], axis=1)
        return self.linear_out(nnx.relu(self.linear_in(flat))).reshape(x.shape)

    def null_condition(self, y):
        raise ValueError("it knows no condition")


class NoNull(nnx.Module):
    Config = MixConfig

    def __call__(self, x, t, y=None, *, key=None):
        return x


class NoConfig(nnx.Module):
    def __call__(self, x, t, y=None, *, key=None):
        return x

    def null_condition(self, y):
        return y


@dataclasses.dataclass(frozen=True)
class Poor:
    sample_shape: tuple[int, ...] = (8, 8, 3)
    num_classes: int = 0


class PoorConfig(NoConfig):
    Config = Poor


class NoModule:
    Config = MixConfig

"""The backbones by name, and what all of them have in common."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from flax import nnx
from jaxtyping import Array, Float, Key

from zigma_jax.errors import ConfigError
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.sit import SiT, SiTConfig
from zigma_jax.models.zigma import ZigMa


class Backbone(Protocol):
    """What the training step, the samplers and the programs ask of a model, an `nnx.Module`.

    Attributes:
        cfg: its configuration, a frozen dataclass that has at least `sample_shape`, `num_classes`, `null_class` and
            `context_size`, which are what they are of a `ZigMaConfig`.
    """

    cfg: Any

    def __call__(
        self, x: Float[Array, "b ..."], t: Float[Array, " b"], y: Any = None, *, key: Key[Array, "*b"] | None = None
    ) -> Float[Array, "b ..."]:
        """The prediction at (x, t) given y, of x's shape; with `key` as in training."""
        ...

    def null_condition(self, y: Any) -> Any:
        """What stands for no condition, of y's shape. Raises ValueError if the model knows none."""
        ...


Model = ZigMa | SiT
BackboneConfig = ZigMaConfig | SiTConfig
FAMILIES = {"zigma": (ZigMaConfig, ZigMa), "sit": (SiTConfig, SiT)}


def family_of(cfg: BackboneConfig) -> str:
    """The family's name. Raises ConfigError for a configuration of none."""
    for name, (kind, _) in FAMILIES.items():
        if isinstance(cfg, kind):
            return name
    raise ConfigError(f"{type(cfg).__name__} is the configuration of no family: there are {', '.join(FAMILIES)}")


def config_to_dict(cfg: BackboneConfig) -> dict[str, Any]:
    """The configuration as plain values; that of a ZigMa, as it always was, does not name its family."""
    family = family_of(cfg)
    return ({} if family == "zigma" else {"family": family}) | dataclasses.asdict(cfg)


def config_from_dict(fields: Mapping[str, Any]) -> BackboneConfig:
    """The configuration that `config_to_dict` made plain.

    Raises ConfigError for an unknown family, unknown fields and values that break a rule.
    """
    fields = dict(fields)
    family = fields.pop("family", "zigma")
    if family not in FAMILIES:
        raise ConfigError(f"family = {family!r}: must be one of {', '.join(FAMILIES)}")
    kind = FAMILIES[family][0]
    if unknown := sorted(fields.keys() - {field.name for field in dataclasses.fields(kind)}):
        raise ConfigError(f"{kind.__name__} has no fields {', '.join(unknown)}")
    return kind(**fields)


def build(cfg: BackboneConfig, *, rngs: nnx.Rngs) -> Model:
    """A new model of this configuration."""
    return FAMILIES[family_of(cfg)][1](cfg, rngs=rngs)

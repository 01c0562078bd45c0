"""The backbones by name, and what all of them have in common."""

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float, Key

from zigma_jax.errors import ConfigError
from zigma_jax.models.sit import SiT
from zigma_jax.models.zigma import ZigMa

_CONFIG_FIELDS = ("sample_shape", "num_classes", "null_class", "context_size")


@runtime_checkable
class Backbone(Protocol):
    """What the training step, the samplers and the programs ask of a model, an `nnx.Module`.

    One that is not of this package is named by where it is, `model.family="package.module:Class"`, and is made by
    Class(cfg, rngs=nnx.Rngs(seed)).

    Attributes:
        Config: of the class: the frozen dataclass of its configurations, with defaults for all fields. It has at least
            `sample_shape`, `num_classes`, `null_class` and `context_size`, as fields or as properties, which mean
            what they mean of a `ZigMaConfig`.
        cfg: of the model: its configuration.
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


Model = Backbone
BackboneConfig = Any  # a `Backbone.Config`
FAMILIES: dict[str, type] = {"zigma": ZigMa, "sit": SiT}
_RULE = f"must be one of {', '.join(FAMILIES)}, or package.module:Class of a backbone of your own"


def family_named(name: str) -> type:
    """The class of a family: one of `FAMILIES`, or "package.module:Class" of a module that has been imported.

    Raises ConfigError for an unknown name, and for a class that is no `Backbone`.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ConfigError(f"family = {name!r}: {_RULE}")
    if module not in sys.modules:
        # A name may come from a file, and importing what a file names would run code that nobody has asked for.
        raise ConfigError(
            f"family = {name!r}: {module} is not imported. Where you trust it, import {module} first; programs do with "
            f"--family={name}"
        )
    found = getattr(sys.modules[module], attribute, None)
    if not isinstance(found, type):
        raise ConfigError(f"family = {name!r}: {module} has no class {attribute}")
    _check_backbone(found, name)
    return found


def import_family(name: str) -> type:
    """`family_named`, of a module that is imported if need be: for names that the user has given."""
    if name not in FAMILIES and ":" in name:
        try:
            importlib.import_module(name.partition(":")[0])
        except ImportError as error:
            raise ConfigError(f"family = {name!r}: cannot be imported: {error}") from error
    return family_named(name)


def _check_backbone(found: type, name: str) -> None:
    """Raises ConfigError for what is missing of the Protocol `Backbone`."""
    problem = None
    if not issubclass(found, nnx.Module):
        problem = "must be an nnx.Module"
    for method in ("__call__", "null_condition"):
        if not callable(getattr(found, method, None)):
            problem = problem or f"has no method {method}"
    config = getattr(found, "Config", None)
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        problem = problem or "has no attribute Config, the dataclass that it is made from"
    else:
        missing = [field for field in _CONFIG_FIELDS if not hasattr(config, field) and field not in _fields(config)]
        if missing:
            problem = problem or f"its Config has no {', '.join(missing)}"
    if problem:
        raise ConfigError(f"family = {name!r}: {problem} (zigma_jax.models.families.Backbone says what is needed)")


def family_of(cfg: Any) -> str:
    """The family's name. Raises ConfigError for a configuration of none."""
    for name, model in FAMILIES.items():
        if isinstance(cfg, model.Config):
            return name
    module = sys.modules.get(type(cfg).__module__)
    for attribute, found in vars(module).items() if module else ():
        if isinstance(found, type) and getattr(found, "Config", None) is type(cfg):
            return f"{found.__module__}:{attribute}"
    raise ConfigError(
        f"{type(cfg).__name__} is the configuration of no family: there are {', '.join(FAMILIES)}, and one of your own "
        "has its class, with the attribute Config, in the same module"
    )


def config_to_dict(cfg: Any) -> dict[str, Any]:
    """The configuration as plain values; that of a ZigMa, as it always was, does not name its family."""
    family = family_of(cfg)
    return ({} if family == "zigma" else {"family": family}) | dataclasses.asdict(cfg)


def config_from_dict(fields: Mapping[str, Any]) -> Any:
    """The configuration that `config_to_dict` made plain.

    Raises ConfigError for an unknown family, unknown fields and values that break a rule.
    """
    fields = dict(fields)
    kind: Any = family_named(fields.pop("family", "zigma")).Config
    if unknown := sorted(fields.keys() - _fields(kind)):
        raise ConfigError(f"{kind.__name__} has no fields {', '.join(unknown)}")
    return kind(**fields)


def build(cfg: Any, *, rngs: nnx.Rngs) -> Any:
    """A new model of this configuration."""
    return family_named(family_of(cfg))(cfg, rngs=rngs)


def _fields(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}

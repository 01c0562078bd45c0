"""From an ml_collections ConfigDict, or JSON, to a `RunConfig`, and back.

`configs/*.py` start from `default_config()` and change fields; the programs turn the result into a `RunConfig`, which
refuses unknown fields, wrong types and impossible values before anything is compiled.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from ml_collections import config_dict

from zigma_jax.training.config import RunConfig, require

_SECTIONS: dict[str, Any] = {section.name: section.type for section in dataclasses.fields(RunConfig)}


def default_config() -> Any:
    """A ConfigDict with the defaults of every field, to be changed by a config file and by flags.

    The size of the samples is said once: `data.image_size` (a square), or `model.sample_shape`.
    """
    defaults, fields = RunConfig(), {}
    for name, section in _SECTIONS.items():
        fields[name] = dataclasses.asdict(getattr(defaults, name))
        for field in dataclasses.fields(section):
            if fields[name][field.name] is None:
                fields[name][field.name] = config_dict.placeholder(_optional_type(field.type))
    config: Any = config_dict.ConfigDict(fields)
    config.model.sample_shape = config_dict.placeholder(tuple)
    config.data.image_size = config_dict.placeholder(int)
    return config.lock()


def to_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Plain dicts of plain values, for JSON."""
    return dataclasses.asdict(config)


def from_dict(sections: Mapping[str, Any] | config_dict.ConfigDict) -> RunConfig:
    """The typed configuration of nested mappings (a ConfigDict, or what `to_dict` wrote).

    Raises:
        ValueError: an unknown section or field, a value of the wrong type, or one that breaks its field's rule.
    """
    parsed = {}
    for name, fields in _with_sample_shape(sections).items():
        _check_known(name, _SECTIONS, "")
        parsed[name] = parse_section(_SECTIONS[name], name, fields)
    return RunConfig(**parsed)


def parse_section(section: Any, name: str, fields: Mapping[str, Any] | config_dict.ConfigDict) -> Any:
    """A section's dataclass from the mapping called `name`. Raises as `from_dict`."""
    types_ = {field.name: field.type for field in dataclasses.fields(section)}
    values = {}
    for field, value in dict(fields).items():
        _check_known(field, types_, f"{name}.")
        values[field] = typed(value, types_[field], f"{name}.{field}")
    return section(**values)


def _with_sample_shape(sections: Mapping[str, Any] | config_dict.ConfigDict) -> dict[str, dict[str, Any]]:
    """Fills in whichever of data.image_size and model.sample_shape was left out."""
    sections = {name: dict(fields) for name, fields in dict(sections).items()}
    data, model = sections.setdefault("data", {}), sections.setdefault("model", {})
    size, shape = data.pop("image_size", None), model.pop("sample_shape", None)
    if size is None and not shape:
        raise ValueError("config.data.image_size = None: give it, or model.sample_shape = (height, width, 3)")
    asked = (size, size) if isinstance(size, int) else tuple(size or ())
    shape = tuple(shape) if shape else (*asked, 3)
    pixels = shape[:2]
    if asked and pixels != asked:
        raise ValueError(
            f"config.data.image_size = {size!r}: model.sample_shape = {shape} says otherwise; give one of them"
        )
    require(
        len(shape) == 3 and shape[2] == 3,
        "model.sample_shape",
        tuple(shape),
        "pictures are (height, width, 3)",
    )
    data["image_size"], model["sample_shape"] = pixels, shape
    return sections


def _check_known(name: str, known: Mapping[str, Any], prefix: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(sorted(known))}"
        raise ValueError(f"config.{prefix}{name}: no such field; {hint}")


def typed(value: Any, wanted: Any, field: str) -> Any:
    """The value as the field's type: lists become tuples, integers floats; anything else must match."""
    if get_origin(wanted) in (typing.Union, types.UnionType):
        options = get_args(wanted)
        if value is None and type(None) in options:
            return None
        for option in options:
            try:
                return typed(value, option, field)
            except ValueError:
                continue
        return _wrong_type(value, wanted, field)
    if get_origin(wanted) is Literal:
        options = get_args(wanted)
        require(value in options, field, value, f"must be one of {', '.join(map(str, options))}")
        return value
    if get_origin(wanted) is tuple:
        if not isinstance(value, list | tuple):
            return _wrong_type(value, wanted, field)
        return tuple(typed(item, get_args(wanted)[0], field) for item in value)
    if wanted is float and type(value) is int:
        return float(value)
    return value if type(value) is wanted else _wrong_type(value, wanted, field)


def _wrong_type(value: Any, wanted: Any, field: str) -> typing.NoReturn:
    name = getattr(wanted, "__name__", str(wanted)) if get_origin(wanted) is None else str(wanted)
    raise ValueError(f"config.{field} = {value!r}: must be of type {name}, not {type(value).__name__}")


def _optional_type(wanted: Any) -> type:
    """The type of an optional field beside None: what a flag's text is read as."""
    options = [option for option in get_args(wanted) if option is not type(None)]
    return float if float in options else options[0]

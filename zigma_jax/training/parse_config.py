"""From an ml_collections ConfigDict, or JSON, to a `RunConfig`, and back.

`configs/*.py` start from `default_config()` and change fields; the programs turn the result into a `RunConfig`, which
refuses unknown fields, wrong types and impossible values before anything is compiled.
"""

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from ml_collections import config_dict

from zigma_jax.errors import ConfigError
from zigma_jax.models.families import FAMILIES, config_to_dict, family_named, import_family
from zigma_jax.models.sit import SiTConfig
from zigma_jax.training.config import RunConfig, require

_SECTIONS: dict[str, Any] = {section.name: section.type for section in dataclasses.fields(RunConfig)}
_SIMPLE = (bool, int, float, str)


@dataclasses.dataclass(frozen=True)
class _Family:
    family: str = dataclasses.field(
        default="zigma",
        metadata={
            "meaning": f"which backbone: {', '.join(FAMILIES)}, or package.module:Class of your own. The fields of the "
            "others mean nothing."
        },
    )


(_FAMILY,) = dataclasses.fields(_Family)


def default_config(family: str = "zigma") -> Any:
    """A ConfigDict with the defaults of every field, to be changed by a config file and by flags.

    family: the backbone; one of your own, "package.module:Class", is imported, and the section `model` has its fields.
    The size of the samples is said once: `data.image_size` (one number, or height and width), or `model.sample_shape`.
    """
    model = import_family(family).Config
    fields = {
        name: {f.name: _settable(_default(f), f.type) for f in section_fields(name, model).values()}
        for name in _SECTIONS
    }
    fields["model"]["family"] = family
    config: Any = config_dict.ConfigDict(fields)
    config.model.sample_shape = config_dict.placeholder(object)
    config.data.image_size = config_dict.placeholder(object)
    return config.lock()


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _settable(default: Any, wanted: Any) -> Any:
    """A field's default, such that config files and flags can set every value that its type allows."""
    options = [option for option in get_args(wanted) or (wanted,) if option is not type(None)]
    if get_origin(wanted) is Literal:
        return default
    scalar = options[0] if len(options) == 1 else float if set(options) == {int, float} else object
    if scalar not in _SIMPLE or get_origin(wanted) is tuple:
        scalar = object  # several types, or a tuple: a flag's text is read as a Python literal
    if default is None:
        return config_dict.placeholder(scalar)
    return config_dict.FieldReference(default, field_type=object) if scalar is object else default


def to_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Plain dicts of plain values, for JSON."""
    return dataclasses.asdict(config) | {"model": config_to_dict(config.model)}


def from_dict(sections: Mapping[str, Any] | config_dict.ConfigDict) -> RunConfig:
    """The typed configuration of nested mappings (a ConfigDict, or what `to_dict` wrote).

    Raises:
        ConfigError: an unknown section or field, a value of the wrong type, or one that breaks its field's rule.
    """
    parsed = {}
    for name, fields in _with_sample_shape(sections).items():
        check_known(name, _SECTIONS, "")
        section = _SECTIONS[name]
        if name == "model":
            section, fields = _of_family(fields)
        parsed[name] = parse_section(section, name, fields)
    return RunConfig(**parsed)


def section_fields(name: str, model: Any = None) -> dict[str, Any]:
    """The fields of a section by name: of `model` those of all families, `model`'s first, and which of them it is."""
    if name != "model":
        return {field.name: field for field in dataclasses.fields(_SECTIONS[name])}
    kinds: list[Any] = [model] if model else []
    kinds += [family.Config for family in FAMILIES.values() if family.Config is not model]
    fields = {field.name: field for kind in reversed(kinds) for field in dataclasses.fields(kind)}
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    return {"family": _FAMILY} | {name: fields[name] for name in names}


def _of_family(fields: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The dataclass of a model's family, and those of the section's fields that it has: the others mean nothing."""
    fields = dict(fields)
    family = fields.pop("family", "zigma")
    try:
        section = family_named(family).Config
    except ConfigError as error:
        raise ConfigError(f"config.model.{error}") from None
    known = section_fields("model", section)
    for field in fields:
        check_known(field, known, "model.")
    names = {field.name for field in dataclasses.fields(section)}
    if section is SiTConfig:  # of fields that both have, these are ZigMa's defaults and mean nothing to SiT
        names -= {name for name, value in {"mlp_ratio": 0.0, "remat": "auto"}.items() if fields.get(name) == value}
    return section, {name: value for name, value in fields.items() if name in names}


def parse_section(section: Any, name: str, fields: Mapping[str, Any] | config_dict.ConfigDict) -> Any:
    """A section's dataclass from the mapping called `name`. Raises as `from_dict`."""
    types_ = {field.name: field.type for field in dataclasses.fields(section)}
    values = {}
    for field, value in dict(fields).items():
        check_known(field, types_, f"{name}.")
        values[field] = typed(value, types_[field], f"{name}.{field}")
    try:
        return section(**values)
    except ConfigError:
        raise
    except ValueError as error:  # of sections that are parts of the library, and say ValueError to its users
        said = str(error)
        raise ConfigError(said if said.startswith("config.") else f"config.{name}: {said}") from None


def _with_sample_shape(sections: Mapping[str, Any] | config_dict.ConfigDict) -> dict[str, dict[str, Any]]:
    """Fills in whichever of data.image_size, data.frames and model.sample_shape was left out.

    Of latents, the picture's size divided by the sample's is the autoencoder's factor. What the autoencoder itself says
    is asked only where a shape is missing, so that a checkpoint's configuration can be read where its network is not.
    """
    sections = {name: dict(fields) for name, fields in dict(sections).items()}
    data, model = sections.setdefault("data", {}), sections.setdefault("model", {})
    latent = sections.get("latent", {})
    size, shape = data.pop("image_size", None), model.pop("sample_shape", None)
    pixels = typed(size, int | tuple[int, ...] | None, "data.image_size")
    pixels = (pixels, pixels) if isinstance(pixels, int) else pixels
    shape = typed(shape, tuple[int, ...] | None, "model.sample_shape") or None
    frames = typed(data.get("frames", 0), int, "data.frames") or (shape[0] if shape and len(shape) == 4 else 0)
    data["frames"], of_clip = frames, (frames,) if frames > 0 else ()
    if shape is not None:
        require(
            shape[: len(shape) - 3] == of_clip,
            "model.sample_shape",
            shape,
            f"data.frames = {frames} says otherwise; give one of them",
        )
        shape = shape[len(of_clip) :]
    if latent.get("autoencoder"):
        pixels, shape = _latent_shape(latent, pixels, shape)
    elif pixels is None and shape is None:
        raise ConfigError("config.data.image_size = None: give it, or model.sample_shape = (height, width, 3)")
    else:
        shape = shape or (*(pixels or ()), 3)
        require(
            len(shape) == 3 and shape[2] == 3,
            "model.sample_shape",
            shape,
            "pictures are (height, width, 3), clips (frames, height, width, 3); latents need latent.autoencoder",
        )
        if pixels not in (None, shape[:2]):
            raise ConfigError(
                f"config.data.image_size = {size!r}: model.sample_shape = {shape} says otherwise; give one of them"
            )
        pixels = shape[:2]
    data["image_size"], model["sample_shape"] = pixels, (*of_clip, *shape)
    return sections


def _latent_shape(latent: Mapping[str, Any], pixels: tuple[int, ...] | None, shape: tuple[int, ...] | None):
    """The pictures' size and the shape of their latents."""
    if pixels is None:
        raise ConfigError("config.data.image_size = None: give the size of the pictures that are to be encoded")
    if shape is None:
        from zigma_jax.networks import autoencoder_geometry

        factor, channels = autoencoder_geometry(latent["autoencoder"], latent.get("weights"))
        if any(length % factor for length in pixels):
            raise ConfigError(
                f"config.data.image_size = {pixels}: must be a multiple of {factor}, the factor of "
                f"latent.autoencoder = {latent['autoencoder']!r}"
            )
        return pixels, (*(length // factor for length in pixels), channels)
    fits = len(shape) == 3 and len(pixels) == 2
    factors = {length / short for length, short in zip(pixels, shape, strict=False)} if fits else set()
    if len(factors) != 1 or not next(iter(factors)).is_integer():
        raise ConfigError(
            f"config.model.sample_shape = {shape}: cannot be the latents of pictures of data.image_size = {pixels}; "
            "leave model.sample_shape out, it follows from the autoencoder"
        )
    return pixels, shape


def check_known(name: str, known: Mapping[str, Any], prefix: str) -> None:
    """Raises ConfigError with the nearest name unless `name` is known."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(sorted(known))}"
        raise ConfigError(f"config.{prefix}{name}: no such field; {hint}")


def check_known_field(path: str) -> None:
    """Raises ConfigError with the nearest name unless `path` is "section.field" of a `RunConfig`."""
    section, _, field = path.partition(".")
    check_known(section, _SECTIONS, "")
    check_known(field, section_fields(section), f"{section}.")


def typed(value: Any, wanted: Any, field: str) -> Any:
    """The value as the field's type: lists become tuples, integers floats; anything else must match.

    A tuple may also be a text with commas, as a flag gives it: "fd,kd".
    """
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
        item = get_args(wanted)[0]
        if isinstance(value, str) and item is str:
            value = [part.strip() for part in value.strip("()[]").split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            return _wrong_type(value, wanted, field)
        return tuple(typed(part, item, field) for part in value)
    if wanted is float and type(value) is int:
        return float(value)
    return value if type(value) is wanted else _wrong_type(value, wanted, field)


def _wrong_type(value: Any, wanted: Any, field: str) -> typing.NoReturn:
    raise ConfigError(f"config.{field} = {value!r}: must be of type {_type_name(wanted)}, not {type(value).__name__}")


def _type_name(wanted: Any) -> str:
    if get_origin(wanted) is Literal:
        return " | ".join(map(repr, get_args(wanted)))
    return wanted.__name__ if isinstance(wanted, type) and get_origin(wanted) is None else str(wanted)


def describe_fields() -> str:
    """Every field of a configuration: its flag, type, default and meaning, as --help prints them."""
    lines = []
    for name, section in _SECTIONS.items():
        kinds = [family.Config for family in FAMILIES.values()] if name == "model" else [section]
        lines += ["", f"config.{name}: {_first_line(kinds[0])}"]
        meaning = {"family": _FAMILY.metadata["meaning"]} if name == "model" else {}
        meaning |= {field: said for kind in reversed(kinds) for field, said in _attributes(kind)}
        for field in section_fields(name).values():
            lines += [
                f"  --config.{name}.{field.name}  {_type_name(field.type)}, by default {field.default!r}",
                f"      {meaning.get(field.name, '')}",
            ]
    return "\n".join(lines)


def _first_line(section: Any) -> str:
    return re.sub(r"^\w+\.\*: *", "", (inspect.getdoc(section) or "").splitlines()[0])


def _attributes(section: Any) -> Iterator[tuple[str, str]]:
    """(field, meaning) of the docstring's "Attributes:"; one entry may be of several fields."""
    text = (inspect.getdoc(section) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    for entry in re.split(r"\n    (?=\S)", "\n" + text.rstrip()):
        names, _, meaning = entry.strip().partition(": ")
        for name in names.split(", "):
            yield name, " ".join(meaning.split())

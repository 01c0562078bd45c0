"""Which autoencoder is meant, and the files that hold it: `parse` and `locate`."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zigma_jax.errors import ConfigError, WeightsError
from zigma_jax.networks import autoencoder_kl, tiny_autoencoder
from zigma_jax.networks.weight_file import WeightFile

KINDS = ("kl", *tiny_autoencoder.CHANNELS)
_HALF = re.compile(r"(?:(.+)_)?(encoder|decoder)\.(safetensors|pth|pt|bin)")
_WHOLE = [f"diffusion_pytorch_model.{suffix}" for suffix in ("safetensors", "fp16.safetensors", "bin")]


@dataclasses.dataclass(frozen=True)
class Located:
    """An autoencoder's kind and files.

    Attributes:
        kind: one of `KINDS`, or "tiny" for a tiny one of which only the architecture is known.
        config: what config.json says; None where there is none.
        config_place: the path of config.json, for messages.
        files: by half, "encoder" and "decoder", or "" for a file that holds both.
    """

    kind: str
    config: Mapping[str, Any] | None
    config_place: str
    files: Mapping[str, Path]

    def open(self) -> WeightFile:
        """The tensors, under the names that the networks take."""
        rename = autoencoder_kl.canonical if self.kind == "kl" else tiny_autoencoder.canonical
        opened = {half: WeightFile(path) for half, path in self.files.items()}
        file = next(iter(opened.values()))
        file.tensors = rename(
            {
                f"{half}.{name}" if half and not name.startswith(f"{half}.") else name: tensor
                for half, part in opened.items()
                for name, tensor in part.tensors.items()
            }
        )
        return file


def parse(
    kind_or_place: str | os.PathLike[str], weights: str | os.PathLike[str] | None
) -> tuple[str | None, str | None]:
    """Kind and place, either None where it is not given; raises ConfigError for an unknown kind or two places."""
    name = os.fspath(kind_or_place)
    if name in KINDS:
        return name, None if weights is None else os.fspath(weights)
    kind, place = None, name
    if (match := re.fullmatch(r"([\w.-]+):(?!//)(.+)", name)) and not os.path.exists(name):
        kind, place = match.groups()
        if kind not in KINDS:
            raise ConfigError(f"autoencoder = {name!r}: no kind {kind!r}, there are {', '.join(KINDS)}")
    if weights is not None:
        raise ConfigError(f"autoencoder = {name!r} is a place, and weights = {os.fspath(weights)!r} another: give one")
    if not place:
        raise ConfigError("autoencoder is empty: give a kind and a place, as in taef2:DIRECTORY, or a place alone")
    return kind, place


def locate(kind: str | None, place: str | None) -> Located:
    """The files of an autoencoder; nothing but config.json is read. Raises WeightsError if they cannot be told."""
    if place is None:
        raise WeightsError(f"autoencoder {kind!r} needs a place of weights, as in {kind}:DIRECTORY")
    path = Path(place)
    if path.is_dir():
        if not (path / "config.json").exists() and (path / "vae" / "config.json").exists():
            path = path / "vae"  # of a whole pipeline
        folder, names = path, sorted(entry.name for entry in path.iterdir() if entry.is_file())
    elif path.is_file():
        folder, names = path.parent, [path.name]
    else:
        raise WeightsError(f"autoencoder: {place} is not a file or directory")

    config_path = folder / "config.json"
    config = _read_config(config_path) if config_path.is_file() else None
    halves = _halves(kind, folder, names)
    if kind is None:
        if config is not None and config.get("_class_name") == tiny_autoencoder.CLASS:
            kind = "tiny"
        elif config is None and halves:
            kind = halves[0]
    kind = kind or "kl"
    if kind != "kl" and halves and (config is None or path.is_file() or halves[0] == kind):
        return Located(halves[0] if kind == "tiny" else kind, None, str(config_path), halves[1])
    if config is None and kind == "kl":
        raise WeightsError(f"{place}: no config.json, which says what the network is: it belongs beside the weights")
    if path.is_file():
        return Located(kind, config, str(config_path), {"": path})
    whole = [name for name in _WHOLE if name in names]
    if not whole:
        wanted = _WHOLE[0] if kind in ("kl", "tiny") else f"{kind}_encoder.pth and {kind}_decoder.pth, or {_WHOLE[0]}"
        raise WeightsError(f"{folder}: no weights of {kind!r} here: there should be {wanted}")
    return Located(kind, config, str(config_path), {"": folder / whole[0]})


def _halves(kind: str | None, folder: Path, names: list[str]) -> tuple[str, dict[str, Path]] | None:
    """The kind and files of a tiny autoencoder that come in two; a file names its twin beside it."""
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for name in names:
        if match := _HALF.fullmatch(name):
            stem, _, suffix = match.groups()
            pair = {half: folder / f"{stem + '_' if stem else ''}{half}.{suffix}" for half in ("encoder", "decoder")}
            found[stem or "", suffix] = {half: path for half, path in pair.items() if path.is_file()}
    tiny = tiny_autoencoder.CHANNELS
    named = {stem for stem, _ in found if stem in tiny}
    stems = ({kind} & named or {stem for stem, _ in found} - named) if kind in tiny else named
    if len(stems) > 1:
        raise WeightsError(f"{folder} holds several autoencoders: say which, as in {min(stems)}:{folder}")
    for stem in stems:
        for suffix in ("safetensors", "pth", "pt", "bin"):
            if (stem, suffix) in found:
                return kind if kind in tiny else stem, found[stem, suffix]
    return None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: not a JSON object")
    return config

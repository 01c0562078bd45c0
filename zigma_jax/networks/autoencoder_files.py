"""Which autoencoder is meant, and the files that hold it: `parse` and `locate`."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zigma_jax.errors import ConfigError, WeightsError
from zigma_jax.networks import autoencoder_kl, tiny_autoencoder
from zigma_jax.networks.sources import MissingWeightsError, Weights, find_weights
from zigma_jax.networks.weight_file import WeightFile

TINY = tiny_autoencoder.CHANNELS
KINDS = ("kl", *TINY)
WHERE = (
    "An autoencoder is a directory with the config.json and diffusion_pytorch_model.safetensors of the hub, such as "
    "hf://stabilityai/sd-vae-ft-ema; a tiny one also a pair of files, such as taef2_encoder.pth and taef2_decoder.pth "
    "of github.com/madebyollin/taesd."
)
_SUFFIXES = ("safetensors", "pth", "pt", "bin")  # best first
_HALF = re.compile(rf"(?:(.+)_)?(encoder|decoder)\.({'|'.join(_SUFFIXES)})")


@dataclasses.dataclass(frozen=True)
class Located:
    """An autoencoder's kind and files.

    Attributes:
        kind: one of `KINDS`, or "tiny" for a tiny one of which only the architecture is known.
        weights: where its files are.
        config: what config.json says; None where it is not needed and there is none.
        halves: the files' names, if encoder and decoder are in files of their own; one of them may be missing.
    """

    kind: str
    weights: Weights
    config: Mapping[str, Any] | None
    halves: tuple[str, ...] = ()

    def open(self) -> WeightFile:
        """The tensors, under the names that the networks take; those of other networks in the file are set aside."""
        parts: set[str] = set()

        def rename(name: str, path: Path) -> str:
            if self.halves and not name.startswith(("encoder.", "decoder.")):
                name = f"{'encoder' if 'encoder' in path.name else 'decoder'}.{name}"
            if self.kind != "kl":
                return tiny_autoencoder.canonical(name)
            assert self.config is not None
            parts.add(name.partition(".")[0])
            return autoencoder_kl.canonical(name, len(self.config["block_out_channels"]))

        file = self.weights.open(*self.halves, rename=rename)
        if "first_stage_model" in parts:
            file.leave(*parts - {"first_stage_model"})
        file.leave("loss.")  # of the discriminator it was trained with
        return file


def parse(
    kind_or_place: str | os.PathLike[str], weights: str | os.PathLike[str] | None
) -> tuple[str | None, str | None]:
    """Kind and place, either None where it is not given; raises ConfigError for an unknown kind or two places."""
    name = os.fspath(kind_or_place)
    if name in KINDS:
        return name, None if weights is None else os.fspath(weights)
    if not name:
        raise ConfigError("autoencoder is empty: give a kind and a place, as in taef2:DIRECTORY, or a place alone")
    kind, place = None, name
    if (match := re.fullmatch(r"([\w.-]+):(?!//)(.*)", name)) and not os.path.exists(name):
        kind, place = match.groups()
        if kind not in KINDS:
            raise ConfigError(f"autoencoder = {name!r}: no kind {kind!r}, there are {', '.join(KINDS)}")
    if weights is not None:
        raise ConfigError(f"autoencoder = {name!r} is a place, and weights = {os.fspath(weights)!r} another: give one")
    return kind, place


def locate(kind: str | None, place: str | None) -> Located:
    """The files of an autoencoder, of which only config.json is read.

    Raises:
        MissingWeightsError: no place, nothing there, or no config.json.
        WeightsError: a config.json of something else, or several autoencoders of which none was named.
    """
    if not place:
        raise MissingWeightsError(f"autoencoder {kind!r} needs a place of weights, as in {kind}:DIRECTORY")
    weights = find_weights(place, where=WHERE, flag="autoencoder")
    if weights.file is None and "config.json" not in weights.names and "vae" in weights.folders:
        weights = weights.within("vae")  # of a whole pipeline
    config = weights.json("config.json")
    halves = _halves(kind, weights)
    if halves and (config is None or weights.file is not None or halves[0] == kind):
        return Located(halves[0], weights, None, halves[1])
    if kind is None and config is None:  # both halves may be in one file that says by its name what it is
        stems = {os.path.splitext(name)[0] for name in ([weights.file] if weights.file else weights.names)}
        kind = next(iter(sorted(stems & TINY.keys())), None)
    if kind is None:
        kind = "tiny" if config is not None and config.get("_class_name") == tiny_autoencoder.CLASS else "kl"
    return Located(kind, weights, weights.config() if kind == "kl" else config)


def _halves(kind: str | None, weights: Weights) -> tuple[str, tuple[str, ...]] | None:
    """The kind of a tiny autoencoder whose halves are files of their own, and their names; a file finds its twin."""
    if kind == "kl":
        return None
    pairs: dict[tuple[str, str], list[str]] = {}
    for name in weights.names:
        if match := _HALF.fullmatch(name):
            pairs.setdefault((match[1] or "", match[3]), []).append(name)
    if weights.file is not None:
        pairs = {key: names for key, names in pairs.items() if weights.file in names}
    stems = {stem for stem, _ in pairs}
    chosen = ({kind} & stems or stems - TINY.keys()) if kind else stems & TINY.keys()
    if len(chosen) > 1:
        raise WeightsError(
            f"{weights.place} holds the autoencoders {', '.join(sorted(chosen))}: say which, as in "
            f"{min(chosen)}:{weights.place}"
        )
    for stem in chosen:
        suffix = min((suffix for s, suffix in pairs if s == stem), key=_SUFFIXES.index)
        return kind or stem, tuple(sorted(pairs[stem, suffix]))
    return None

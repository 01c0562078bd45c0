"""Finding a model's tensors in whatever a training program saved around them."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from zigma_jax.errors import WeightsError

# Wrappers that put their name before every parameter below them, wherever they are.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What an official name begins with, after any prefix.
_OFFICIAL = re.compile(
    r"(?<![^.])(?=(?:x_embedder|t_embedder|y_embedder|final_layer|norm_f|pos_embed_list|blocks\.\d+)\."
    r"|(?:pos_embed|temporal_pos_embedding)$)"
)
_EMA = re.compile(r"(?<![a-z])ema(?![a-z])")
_RAW = re.compile(r"(?<![^./])(?:model|model_state|model_state_dict|online_model|raw|net)(?![^./])")


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a set of tensors lies: keys of nested dictionaries, and the prefix of the names in the last of them."""

    keys: tuple[str, ...]
    prefix: str

    @property
    def kind(self) -> Literal["ema", "model", "only"]:
        """Averaged; raw; or not said: the only set of its file. A prefix `model.` alone says nothing."""
        if _EMA.search("/".join((*self.keys, self.prefix))):
            return "ema"
        return "model" if _RAW.search("/".join(self.keys)) or "online_model." in self.prefix else "only"

    def __str__(self) -> str:
        where = "".join(f"[{key!r}]" for key in self.keys) or "the file's top level"
        return f"{where} under {self.prefix!r}" if self.prefix else where


def find_state_dict(contents: Any, weights: Literal["ema", "model"], path: str) -> dict[str, Any]:
    """The tensors of one model by their official names, from a training checkpoint, Lightning's, or a bare state dict.

    They are wherever the official names are, however many dictionaries and prefixes (`module.`, `_orig_mod.`,
    `ema_model.`, …) are around them. A set is averaged if a key or the prefix says "ema", raw if a key says "model";
    one that says neither is taken for either.

    Raises:
        WeightsError: no such tensors; none of the kind asked for, naming the flag for what there is; two sets that
            cannot be told apart.
    """
    if weights not in ("ema", "model"):
        raise WeightsError(f"weights = {weights!r}: must be 'ema' or 'model'")
    places: dict[_Place, dict[str, Any]] = {}
    for keys, tensors in _dictionaries(contents, ()):
        names = {_WRAPPERS.sub("", name): value for name, value in tensors.items()}
        prefixes = {name[: match.start()] for name in names if (match := _OFFICIAL.search(name))}
        for prefix in prefixes:
            # A longer prefix's tensors are another set: "ema_model." beside "".
            own = [
                n
                for n in names
                if n.startswith(prefix) and not any(len(p) > len(prefix) and n.startswith(p) for p in prefixes)
            ]
            places[_Place(keys, prefix)] = {name[len(prefix) :]: names[name] for name in own}
    most = max((_official(found) for found in places.values()), default=0)
    if not most:
        keys = list(map(str, contents))[:10] if isinstance(contents, Mapping) else type(contents).__name__
        raise WeightsError(f"{path}: no official weights under {weights!r}; the file holds {keys}")
    # Other networks beside the model may have a few of its names.
    whole = {place: found for place, found in places.items() if _official(found) > most / 2}
    for kind in (weights, "only"):
        chosen = [place for place in whole if place.kind == kind]
        if len(chosen) > 1:
            raise WeightsError(
                f"{path}: {len(chosen)} sets of weights, and nothing says which one is {weights!r}: "
                f"{'; '.join(map(str, chosen))}; save the one that is meant by itself"
            )
        if chosen:
            return whole[chosen[0]]
    there = "; ".join(map(str, whole))
    if weights == "ema":
        raise WeightsError(
            f"{path}: no averaged weights ('ema'); for those in {there} give --weights=raw (weights='model')"
        )
    raise WeightsError(f"{path}: no raw weights ('model'); for those in {there} give --weights=ema")


def _official(tensors: Mapping[str, Any]) -> int:
    return sum(_OFFICIAL.match(name) is not None for name in tensors)


def _dictionaries(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every dictionary with names of tensors, and the keys that lead to it."""
    if not isinstance(value, Mapping) or len(keys) > 6:
        return
    leaves = {
        k: v for k, v in value.items() if isinstance(k, str) and not isinstance(v, Mapping | str | int | float | None)
    }
    if any(isinstance(leaf, np.ndarray) for leaf in leaves.values()):
        yield keys, leaves
    for key, part in value.items():
        if isinstance(key, str) and isinstance(part, Mapping):
            yield from _dictionaries(part, (*keys, key))


def find_arguments(contents: Any, needed: tuple[str, ...], depth: int = 0) -> Mapping[str, Any] | None:
    """The first dictionary in the file that has all the fields `needed`: its model's arguments. None without any."""
    if not isinstance(contents, Mapping) or depth > 6:
        return None
    if all(contents.get(field) is not None for field in needed):
        return contents
    for part in contents.values():
        if (found := find_arguments(part, needed, depth + 1)) is not None:
            return found
    return None

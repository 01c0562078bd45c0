"""What is known of the pictures of a set beside the pictures: classes and attributes, and which of them show."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from zigma_jax.data.datasets import avatar_art, avatar_words
from zigma_jax.data.prepared import PreparedSource
from zigma_jax.data.source import Source

CLASS = "class"
"""The name of the class among the attributes."""
UNSEEN = -1
"""The value of an attribute that a picture does not show, or that is not asked for."""

Values = Mapping[str, Int[np.ndarray, " n"]]
"""Of each attribute its value for each of n pictures: a place in `attribute_names`, or UNSEEN."""


def attribute_names(source: Source) -> dict[str, tuple[str, ...]]:
    """The attributes of a set's pictures, the class first, and the values that each takes; empty if there are none."""
    names = {CLASS: source.info.class_names} if source.info.num_classes > 1 else {}
    return names | (source.attribute_names if isinstance(source, PreparedSource) else {})


def attribute_values(source: Source, records: Sequence[int] | Int[np.ndarray, " n"]) -> Values:
    """What the pictures of these records show."""
    names, rows = attribute_names(source), []
    for record in records:
        row = _row(source, int(record), names)
        hidden = _hidden(source, _in_words(row, names))
        rows.append([UNSEEN if name in hidden else row[name] for name in names])
    return _columns(names, rows)


def asked_in_captions(source: Source, records: Int[np.ndarray, " n"], captions: Sequence[str]) -> Values:
    """What `captions`, one of each record, ask for: what the record's picture shows, or UNSEEN if it is not named.

    Avatars' sentences are known. Elsewhere a value is asked for if the caption has its name as a word or words.
    """
    names, rows = attribute_names(source), []
    for record, caption in zip(records, captions, strict=True):
        row = _row(source, int(record), names)
        words = _in_words(row, names)
        if _are_avatars(source):
            told = avatar_words.named(caption, words)
        else:
            told = {name for name, value in words.items() if _says(caption, value)}
        told -= _hidden(source, words)
        rows.append([row[name] if name in told else UNSEEN for name in names])
    return _columns(names, rows)


def _row(source: Source, record: int, names: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    row = {CLASS: source.label(source[record])} if CLASS in names else {}
    return row | (source.attributes(record) if isinstance(source, PreparedSource) else {})


def _hidden(source: Source, words: dict[str, str]) -> set[str]:
    """The attributes that the picture does not show. Of sets other than avatars nothing is known of that."""
    return avatar_art.hidden(words) if _are_avatars(source) else set()


def _in_words(row: Mapping[str, int], names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: names[name][value] for name, value in row.items()}


def _columns(names: Mapping[str, tuple[str, ...]], rows: list[list[int]]) -> Values:
    table = np.array(rows, np.int32).reshape(-1, len(names))
    return {name: table[:, place] for place, name in enumerate(names)}


def _are_avatars(source: Source) -> bool:
    return source.info.name.partition("/")[0] == "avatars"


def _says(caption: str, value: str) -> bool:
    value = value.replace("_", " ")
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", caption, re.IGNORECASE) is not None

"""Which columns of a parquet file hold pictures, classes and captions.

Files of the Hugging Face hub say it in their schema's metadata (Image, ClassLabel, string, list of strings); in others
it follows from the types of Arrow and the columns' names.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from zigma_jax.data.prepared import CAPTIONS
from zigma_jax.errors import DataError

IMAGES = ("image", "images", "img", "picture", "jpg", "png")
LABELS = ("label", "labels", "class")
_NO_CAPTIONS = ("file", "path", "url", "uri", "id", "key", "name", "hash", "license", "licence", "source", "split")
_MAX_CLASSES = 100_000


class Columns(NamedTuple):
    """The columns asked for, or found; None: to be found, or none there."""

    image: str | None = None
    label: str | None = None
    caption: str | None = None


def choose(schema: pa.Schema, asked: Columns, where: str) -> Columns:
    """The columns to read. A column that is asked for must be there and of the right kind.

    Pictures: `image` or another usual name, else the only column of pictures. Classes: `label`, else the only
    ClassLabel. Captions: the usual names, else the only column of texts that isn't named after something else.
    Raises DataError naming the columns and the field that chooses among them.
    """
    kinds = {field.name: _kind(field, _features(schema)) for field in schema}
    images = [name for name, kind in kinds.items() if kind == "image"]
    if asked.image and kinds.get(asked.image) == "binary":
        images.append(asked.image)
    images = images or [name for name in IMAGES if kinds.get(name) == "binary"]
    labels = [name for name, kind in kinds.items() if kind in ("classes", "int", "bool", "text")]
    texts = [name for name, kind in kinds.items() if kind in ("text", "texts")]
    for kind, name, fitting in zip(Columns._fields, asked, (images, labels, texts), strict=True):
        if name and name not in fitting:
            raise DataError(
                f"data.{kind}_column={name!r}: {where} has no such column of a fitting kind; it has "
                f"{', '.join(f'{column} ({found or schema.field(column).type})' for column, found in kinds.items())}"
            )
    image = asked.image or next((name for name in IMAGES if name in images), None)
    if not image:
        if len(images) != 1:
            raise DataError(
                f"{where}: {'several columns hold' if images else 'no column holds'} encoded pictures; choose one by "
                f"data.image_column. The columns: {', '.join(f'{f.name} ({f.type})' for f in schema)}"
            )
        (image,) = images
    classes = [name for name in labels if kinds[name] == "classes"]
    label = asked.label or next((name for name in LABELS if name in labels), None)
    if not label and len(classes) == 1:
        (label,) = classes
    elif not label and classes:
        logging.warning("%s has the classes %s: choose by data.label_column", where, ", ".join(classes))
    others = [name for name in texts if name != label]
    caption = asked.caption or next((name for name in CAPTIONS if name in others), None)
    if not caption:
        plain = [name for name in others if not any(word in name.lower().split("_") for word in _NO_CAPTIONS)]
        caption = plain[0] if len(plain) == 1 else None
    return Columns(image, label, caption)


def class_names(schema: pa.Schema, column: str, files: Sequence[Path]) -> dict[Any, str]:
    """The values of a column of classes, in the order of their ids, and their names.

    A ClassLabel's names; else, of whole numbers from 0 on, the numbers; else the values that occur, sorted.
    """
    feature = _features(schema).get(column)
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        names = feature.get("names") or [str(number) for number in range(int(feature.get("num_classes") or 0))]
        if names:
            return {number: str(name) for number, name in enumerate(names)}
    values: set[Any] = set()
    for file in files:
        values |= set(pq.read_table(file, columns=[column])[column].unique().to_pylist())
    values.discard(None)
    if not values or len(values) > _MAX_CLASSES:
        raise DataError(
            f"data.label_column={column!r}: {len(values)} different values; between 1 and {_MAX_CLASSES} may be"
        )
    kind = schema.field(column).type
    if pa.types.is_boolean(kind):
        return {False: f"not {column}", True: column}
    if pa.types.is_integer(kind) and min(values) >= 0:
        if max(values) >= _MAX_CLASSES:
            raise DataError(f"data.label_column={column!r}: {max(values)} is no class; they are numbered from 0 on")
        return {number: str(number) for number in range(max(values) + 1)}
    if pa.types.is_integer(kind) and len(values) > 2:
        raise DataError(f"data.label_column={column!r}: {min(values)} is no class; they are numbered from 0 on")
    return {value: str(value) for value in sorted(values)}


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What the hub's metadata says of the columns."""
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}


def _kind(field: pa.Field, features: dict[str, Any]) -> str | None:
    """image, binary, classes, int, bool, text or texts; None for anything else."""
    feature, kind = features.get(field.name), field.type
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        return "classes"
    if pa.types.is_struct(kind):
        inner = {child.name: child.type for child in kind}
        return "image" if "bytes" in inner and _is_binary(inner["bytes"]) else None
    if _is_binary(kind):
        return "image" if isinstance(feature, dict) and feature.get("_type") == "Image" else "binary"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return "texts" if _is_text(kind.value_type) else None
    return "text" if _is_text(kind) else None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)

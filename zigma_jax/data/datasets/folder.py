"""The `folder` dataset: any directory of pictures, laid out as Hugging Face's imagefolder expects.

DIR/a.png  DIR/deep/b.jpg                   no classes, if every picture lies directly in DIR
DIR/cat/a.png  DIR/dog/b.jpg                one class for each folder in DIR
DIR/train/...  DIR/test/...                 the same, one folder for each split
DIR/metadata.jsonl | metadata.csv           rows of file_name and text | caption, label (also inside a
split's folder)
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from tqdm import tqdm

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
SPLITS = ("train", "validation", "val", "test")
METADATA = ("metadata.jsonl", "metadata.csv")
CAPTION_COLUMNS = ("text", "caption")
LABEL_COLUMNS = ("label", "class")


class Picture(NamedTuple):
    """One picture of a folder; label None where there are no classes, caption None where there are no
    texts."""

    path: Path
    label: str | None
    caption: str | None


def scan(folder: Path) -> dict[str, list[Picture]]:
    """The pictures of a folder by split, each in the order of their names or of the metadata's rows.

    Raises ValueError naming `data.folder` and the rule broken: a missing folder, no pictures, rows that
    name no file, rows without a label beside rows with one, pictures both inside and outside class folders.
    """
    if not folder.is_dir():
        raise ValueError(f"data.folder={str(folder)!r}: there is no such directory")
    splits = {name: folder / name for name in SPLITS if (folder / name).is_dir()}
    if not splits or any((folder / name).is_file() for name in METADATA):
        splits = {"train": folder}
    found = {name: _scan_split(path) for name, path in splits.items()}
    for name, pictures in found.items():
        if not pictures:
            raise ValueError(
                f"data.folder={str(folder)!r}: no pictures in {str(splits[name])!r} ({', '.join(SUFFIXES)})"
            )
    everything = [picture for pictures in found.values() for picture in pictures]
    for column in ("label", "caption"):
        without = [p for p in everything if getattr(p, column) is None]
        if 0 < len(without) < len(everything):
            raise ValueError(
                f"data.folder={str(folder)!r}: {len(without)} of {len(everything)} pictures have no "
                f"{column}, "
                f"such as {str(without[0].path)!r}; either all have one or none"
            )
    return found


def _scan_split(folder: Path) -> list[Picture]:
    tables = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f"data.folder: {str(folder)!r} has both {' and '.join(METADATA)}; keep one")
    if tables:
        return [_from_row(tables[0], number, row) for number, row in enumerate(_read_table(tables[0]), 1)]
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    classes = [path.relative_to(folder).parts[0] if path.parent != folder else None for path in paths]
    return [Picture(path, label, None) for path, label in zip(paths, classes, strict=True)]


def _read_table(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
    return rows


def _from_row(table: Path, number: int, row: dict[str, Any]) -> Picture:
    name = row.get("file_name")
    if not name:
        raise ValueError(f"{table}, row {number}: no file_name (columns: {', '.join(map(str, row))})")
    path = table.parent / name
    if not path.is_file():
        raise ValueError(f"{table}, row {number}: file_name={name!r} is no file in {str(table.parent)!r}")
    label = next((row[column] for column in LABEL_COLUMNS if row.get(column) not in (None, "")), None)
    caption = next((row[column] for column in CAPTION_COLUMNS if row.get(column) is not None), None)
    return Picture(path, None if label is None else str(label), caption)


def class_names(pictures: list[Picture]) -> list[str]:
    """The classes in the order of their ids: names sorted; if all are whole numbers, the numbers are the ids.

    Raises ValueError for a negative number.
    """
    names = {picture.label for picture in pictures if picture.label is not None}
    if not all(re.fullmatch(r"-?\d+", name) for name in names):
        return sorted(names)
    if negative := sorted(name for name in names if int(name) < 0):
        raise ValueError(f"data.folder: label={negative[0]} is out of range: labels that are numbers start at 0")
    return [str(number) for number in range(max(map(int, names), default=-1) + 1)]


class Folder(tfds.core.GeneratorBasedBuilder):
    """The pictures of one directory, copied as they are (not decoded) into ArrayRecord.

    The listing (relative names, sizes, labels, captions) is part of the data set's name: a changed directory
    is prepared anew, and the old copy stays until it is deleted. A picture edited to the same number of bytes
    goes unnoticed: delete the prepared copy then.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, folder: str, data_dir: str | None = None):
        root = Path(folder).expanduser()
        self._pictures = scan(root)
        root = self._root = root.resolve()
        digest = hashlib.sha256()
        for split, pictures in self._pictures.items():
            for path, label, caption in pictures:
                name = path.resolve().relative_to(root, walk_up=True).as_posix()
                digest.update(repr((split, name, path.stat().st_size, label, caption)).encode())
        slug = re.sub(r"\W+", "_", root.name) or "root"
        config = tfds.core.BuilderConfig(
            name=f"{slug}-{digest.hexdigest()[:16]}", version=self.VERSION, description=str(root)
        )
        super().__init__(config=config, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        everything = [picture for pictures in self._pictures.values() for picture in pictures]
        features: dict[str, Any] = {"image": tfds.features.Image(), "file_name": tfds.features.Text()}
        if everything[0].label is not None:
            features["label"] = tfds.features.ClassLabel(names=class_names(everything))
        if everything[0].caption is not None:
            features["caption"] = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The pictures of {self._root}",
            features=tfds.features.FeaturesDict(features),
            license="that of the pictures in the folder",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split, pictures) for split, pictures in self._pictures.items()}

    def _generate_examples(self, split: str, pictures: list[Picture]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (path, label, caption) in enumerate(tqdm(pictures, f"folder: {split}", unit="picture")):
            record: dict[str, Any] = {"image": path.read_bytes(), "file_name": str(path)}
            record |= {} if label is None else {"label": label}
            record |= {} if caption is None else {"caption": caption}
            yield index, record

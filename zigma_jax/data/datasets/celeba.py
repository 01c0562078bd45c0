"""The `celeba` dataset: CelebA from the files of its authors, laid by hand in one directory.

img_align_celeba.zip        the aligned pictures; or img_align_celeba/, unpacked
list_eval_partition.txt     which picture belongs to which split; or .csv, as on Kaggle
list_attr_celeba.txt        forty attributes of each picture, if wanted; or .csv
"""

import csv
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from zigma_jax.data.datasets.archives import find_members
from zigma_jax.errors import DataError

PICTURES = "img_align_celeba"
PARTITION = "list_eval_partition"
ATTRIBUTES = "list_attr_celeba"
SPLITS = {"0": "train", "1": "validation", "2": "test"}
WHERE_FROM = (
    "img_align_celeba.zip, list_eval_partition.txt and, for the attributes, list_attr_celeba.txt come from "
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (or, as .csv, from Kaggle's jessicali9530/celeba-dataset)"
)
LICENCE = "non-commercial research only: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


class Celeba(tfds.core.GeneratorBasedBuilder):
    """202,599 aligned faces of 178 x 218 pixels by split, with their attributes; the pictures stay as they are.

    Raises DataError naming the file that is missing or damaged.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, folder: str, data_dir: str | None = None):
        root = self._root = Path(folder).expanduser()
        if not root.is_dir():
            raise DataError(f"data.folder={folder!r}: there is no such directory. {WHERE_FROM}")
        partition = _find_table(root, PARTITION)
        if partition is None:
            raise DataError(f"data.folder={folder!r}: there is no {PARTITION}.txt or .csv in it. {WHERE_FROM}")
        self._sizes, self._open = find_members(root, PICTURES, ".jpg", WHERE_FROM)
        _, rows = _read_table(partition)
        attributes = _find_table(root, ATTRIBUTES)
        self._names, self._attributes = _read_table(attributes) if attributes else ([], {})
        self._splits: dict[str, list[str]] = {name: [] for name in SPLITS.values()}
        absent = []
        for name, values in rows.items():
            if len(values) != 1 or values[0] not in SPLITS:
                raise DataError(f"{partition}: {name} is in split {' '.join(values)!r}, which must be 0, 1 or 2")
            known = name in self._sizes and (attributes is None or name in self._attributes)
            (self._splits[SPLITS[values[0]]] if known else absent).append(name)
        self._splits = {split: names for split, names in self._splits.items() if names}
        if not self._splits:
            raise DataError(f"{partition}: none of its {len(rows)} pictures is in {root}, such as {absent[:1]}")
        if absent:
            logging.warning(
                "%s: %d of its %d pictures are not in %s, or have no attributes, such as %s",
                partition, len(absent), len(rows), root, absent[0],
            )  # fmt: skip
        digest = hashlib.sha256(repr((self._names, sorted(self._attributes.items()))).encode())
        for split, names in self._splits.items():
            digest.update(repr((split, [(name, self._sizes[name]) for name in names])).encode())
        config = tfds.core.BuilderConfig(name=digest.hexdigest()[:16], version=self.VERSION, description=str(root))
        super().__init__(config=config, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {"image": tfds.features.Image(), "file_name": tfds.features.Text()}
        if self._names:
            features["attributes"] = {name: tfds.features.Scalar(np.bool_) for name in self._names}
        return tfds.core.DatasetInfo(
            builder=self,
            description="CelebA, aligned and cropped, from the files of its authors.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
            license=LICENCE,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split, names) for split, names in self._splits.items()}

    def _generate_examples(self, split: str, names: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._open() as read:
            for index, name in enumerate(tqdm(names, f"celeba: {split}", unit="picture")):
                record: dict[str, Any] = {"image": read(name), "file_name": name}
                if self._names:
                    values = self._attributes[name]
                    record["attributes"] = {key: one == "1" for key, one in zip(self._names, values, strict=True)}
                yield index, record


def _find_table(root: Path, name: str) -> Path | None:
    return next((path for path in (root / f"{name}.txt", root / f"{name}.csv") if path.is_file()), None)


def _read_table(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The headings, and the cells of each picture by its name. A .txt may begin with the number of pictures."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    rows = (
        list(csv.reader(text.splitlines())) if path.suffix == ".csv" else [line.split() for line in text.splitlines()]
    )
    rows = [row for row in rows if row and not (len(row) == 1 and row[0].isdigit())]
    headings: list[str] = []
    if rows and not re.fullmatch(r"\d+\.\w+", rows[0][0]):
        headings = rows.pop(0)
        headings = headings[1:] if path.suffix == ".csv" else headings
    for row in rows:
        if headings and len(row) != len(headings) + 1:
            raise DataError(f"{path}: {row[0]} has {len(row) - 1} cells, where there are {len(headings)} headings")
    if not rows:
        raise DataError(f"{path}: there is no row in it; download it again. {WHERE_FROM}")
    return headings, {row[0]: row[1:] for row in rows}

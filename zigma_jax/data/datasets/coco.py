"""The `coco` dataset: COCO 2014 with its captions, from the archives of its authors, laid by hand in one directory.

train2014.zip, val2014.zip       the pictures; or train2014/, val2014/, unpacked; one of them will do
annotations_trainval2014.zip     the captions, among other annotations; or annotations/, unpacked
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from zigma_jax.data.datasets.archives import find_members
from zigma_jax.errors import DataError

SPLITS = {"train": "train2014", "validation": "val2014"}
ANNOTATIONS = "annotations_trainval2014"
WHERE_FROM = "train2014.zip, val2014.zip and annotations_trainval2014.zip come from https://cocodataset.org/#download"
LICENCE = "captions: CC-BY 4.0; the pictures' licences are those of Flickr: https://cocodataset.org/#termsofuse"


class Picture(NamedTuple):
    """A picture of a split: its file, and its captions in the order of their ids."""

    file_name: str
    image_id: int
    captions: tuple[str, ...]


class Coco(tfds.core.GeneratorBasedBuilder):
    """82,783 pictures (`train`) and 40,504 (`validation`) with about five captions each; pictures stay as they are.

    Raises DataError naming the file that is missing or damaged.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, folder: str, data_dir: str | None = None):
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise DataError(f"data.folder={folder!r}: there is no such directory. {WHERE_FROM}")
        there = {
            split: name for split, name in SPLITS.items() if (root / f"{name}.zip").is_file() or (root / name).is_dir()
        }
        if not there:
            raise DataError(f"data.folder={folder!r}: there is neither train2014.zip nor val2014.zip. {WHERE_FROM}")
        name = ANNOTATIONS if (root / f"{ANNOTATIONS}.zip").is_file() else "annotations"
        tables, opened = find_members(root, name, ".json", WHERE_FROM)
        self._pictures: dict[str, list[Picture]] = {}
        self._open: dict[str, Any] = {}
        digest = hashlib.sha256()
        for split, name in there.items():
            table = f"captions_{name}.json"
            if table not in tables:
                raise DataError(f"data.folder={folder!r}: its annotations have no {table}. {WHERE_FROM}")
            with opened() as read:
                told = _pictures(f"{root}: {table}", read(table))
            sizes, self._open[split] = find_members(root, name, ".jpg", WHERE_FROM)
            found = [picture for picture in told if picture.file_name in sizes]
            if not found:
                raise DataError(f"{root}: none of the {len(told)} pictures of {table} is in {name}")
            for problem, count in (
                (f"pictures of {table} are not in {name}", len(told) - len(found)),
                (f"pictures of {table} have no captions", sum(not picture.captions for picture in found)),
            ):
                if count:
                    logging.warning("%s: %d of %d %s", root, count, len(told), problem)
            self._pictures[split] = found
            digest.update(repr((split, [(*picture, sizes[picture.file_name]) for picture in found])).encode())
        config = tfds.core.BuilderConfig(name=digest.hexdigest()[:16], version=self.VERSION, description=str(root))
        super().__init__(config=config, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="COCO 2014 with its captions, from the archives of its authors.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "file_name": tfds.features.Text(),
                    "image_id": tfds.features.Scalar(np.int64),
                }
            ),
            homepage="https://cocodataset.org",
            license=LICENCE,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split, pictures) for split, pictures in self._pictures.items()}

    def _generate_examples(self, split: str, pictures: list[Picture]) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._open[split]() as read:
            for index, picture in enumerate(tqdm(pictures, f"coco: {split}", unit="picture")):
                record = {**picture._asdict(), "image": read(picture.file_name), "captions": list(picture.captions)}
                yield index, record


def _pictures(where: str, content: bytes) -> list[Picture]:
    """The pictures of a file of captions, in the order of their ids."""
    captions: dict[int, list[tuple[int, str]]] = defaultdict(list)
    try:
        table = json.loads(content)
        for annotation in table["annotations"]:
            captions[int(annotation["image_id"])].append((int(annotation["id"]), str(annotation["caption"])))
        pictures = sorted((int(image["id"]), str(image["file_name"])) for image in table["images"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{where}: holds no captions of COCO ({type(error).__name__}: {error}); download the annotations again"
        ) from None
    return [Picture(name, number, tuple(text for _, text in sorted(captions[number]))) for number, name in pictures]

"""The `ucf101` dataset: UCF101 from the files of its authors, laid by hand in one directory.

UCF101.rar                                  the clips; or a .zip of them, or UCF-101/ or UCF101/, unpacked
UCF101TrainTestSplits-RecognitionTask.zip   the official lists; or ucfTrainTestlist/, unpacked
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from zigma_jax.data.datasets.archives import Read, find_members
from zigma_jax.errors import DataError

CLIPS = ("UCF101", "UCF-101")
LISTS = ("UCF101TrainTestSplits-RecognitionTask", "ucfTrainTestlist")
WHERE_FROM = (
    "UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip come from https://www.crcv.ucf.edu/data/UCF101.php"
)


class Ucf101(tfds.core.GeneratorBasedBuilder):
    """13,320 clips of 101 actions, by split; the files stay as they are. Captions are the actions' names.

    folder: where the files lie. lists: which of the three official pairs of lists makes `train` and `test`; the clips
    of a group (one person in one place) never lie in both.

    Raises DataError naming the file that is missing or damaged, or the clip that is in no class.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, folder: str, lists: int = 1, data_dir: str | None = None):
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise DataError(f"data.folder={folder!r}: there is no such directory. {WHERE_FROM}")
        texts, open_texts = _find(root, LISTS, ".txt")
        sizes, self._open = _find(root, CLIPS, ".avi")
        names = ("classInd.txt", f"trainlist{lists:02}.txt", f"testlist{lists:02}.txt")
        if missing := [name for name in names if name not in texts]:
            raise DataError(f"data.folder={folder!r}: there is no {missing[0]} among the lists. {WHERE_FROM}")
        with open_texts() as read:
            classes, train, test = (read(name).decode("utf-8", "replace").splitlines() for name in names)
        self._names = _classes(classes)
        self._splits: dict[str, list[tuple[str, str]]] = {}
        absent: list[str] = []
        for split, lines in (("train", train), ("test", test)):
            clips = [_clip(line, split, self._names) for line in lines if line.strip()]
            absent += [name for name, _ in clips if name not in sizes]
            if there := [(name, action) for name, action in clips if name in sizes]:
                self._splits[split] = there
        if not self._splits:
            raise DataError(f"data.folder={folder!r}: none of the listed clips is in it, such as {absent[:1]}")
        if absent:
            logging.warning("%s: %d of the listed clips are not there, such as %s", root, len(absent), absent[0])
        digest = hashlib.sha256(repr((lists, self._names)).encode())
        for split, clips in self._splits.items():
            digest.update(repr((split, [(name, sizes[name]) for name, _ in clips])).encode())
        config = tfds.core.BuilderConfig(name=digest.hexdigest()[:16], version=self.VERSION, description=str(root))
        super().__init__(config=config, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="UCF101: clips of 101 actions, from the files of its authors.",
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Scalar(np.object_),
                    "label": tfds.features.ClassLabel(names=self._names),
                    "caption": tfds.features.Text(),
                    "file_name": tfds.features.Text(),
                }
            ),
            homepage="https://www.crcv.ucf.edu/data/UCF101.php",
            license="not stated: clips of YouTube, given out for research",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split, clips) for split, clips in self._splits.items()}

    def _generate_examples(self, split: str, clips: list[tuple[str, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._open() as read:
            for index, (name, action) in enumerate(tqdm(clips, f"ucf101: {split}", unit="clip")):
                yield index, {"video": read(name), "label": action, "caption": _words(action), "file_name": name}


def _find(root: Path, names: tuple[str, ...], kind: str) -> tuple[dict[str, int], Any]:
    """`find_members` of the first of several names that is there."""
    ends = (".zip", ".rar", "")
    there = next((name for name in names for end in ends if (root / f"{name}{end}").exists()), names[0])
    found: tuple[dict[str, int], AbstractContextManager[Read] | Any] = find_members(root, there, kind, WHERE_FROM)
    return found


def _classes(lines: list[str]) -> list[str]:
    """The actions in the order of their numbers, which start at 1: "1 ApplyEyeMakeup"."""
    rows = [line.split() for line in lines if line.strip()]
    if not rows or any(len(row) != 2 or row[0] != str(number) for number, row in enumerate(rows, 1)):
        raise DataError(
            f"classInd.txt: its lines must be a number from 1 on and an action, such as '1 Archery': {rows[:2]}"
        )
    return [action for _, action in rows]


def _clip(line: str, split: str, names: list[str]) -> tuple[str, str]:
    """Name and action of "Archery/v_Archery_g08_c01.avi 3"; the number is not in the lists of test clips."""
    action, _, name = line.split()[0].partition("/")
    if action not in names or not name:
        raise DataError(f"the list of {split} clips: {line!r} is in no class of classInd.txt")
    return name, action


def _words(action: str) -> str:
    """ApplyEyeMakeup: "apply eye makeup"; YoYo and TaiChi, too, are of two words."""
    return " ".join(re.findall(r"[A-Z][a-z]*", action)).lower() or action

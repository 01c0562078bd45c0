"""A directory of clips as a data set. The files are read where they are: of a long one only a window is wanted."""

import hashlib
import os
import re
from pathlib import Path

from zigma_jax.data.clips.decode import frame_files
from zigma_jax.data.clips.files import SUFFIXES, find_clips, is_clip
from zigma_jax.data.datasets.classes import class_ids
from zigma_jax.data.datasets.folder import Kind, Picture, contents_of, scan
from zigma_jax.data.source import SourceInfo
from zigma_jax.data.splits import parts
from zigma_jax.errors import DataError

CLIPS = Kind("clips", find_clips, is_clip, (*SUFFIXES, "directories of pictures"))


class ClipFolder:
    """The clips of one directory, laid out as the pictures of `datasets.folder` are; see `Source`.

    folder: the directory. split: one of its splits, or part of one. data_dir: what is computed of the clips is kept
    below it. A copy of the directory is the same set, and an edited one is another.

    Raises:
        DataError: as `datasets.folder.scan`; no such split, or an empty one.
    """

    def __init__(self, folder: str, split: str, data_dir: Path):
        root = Path(folder).expanduser()
        found = scan(root, CLIPS)
        chosen = parts(split, {name: len(clips) for name, clips in found.items()})
        self._clips: list[Picture] = [clip for name, first, end in chosen for clip in found[name][first:end]]
        if not self._clips:
            raise DataError(f"data.split={split!r} of data.folder={folder!r} is empty")
        everything = [clip for clips in found.values() for clip in clips]
        names, self._ids = class_ids(clip.label for clip in everything if clip.label is not None)
        slug = re.sub(r"\W+", "_", root.resolve().name) or "root"
        digest = _digest(found, root, data_dir / "clips", slug)
        self.info = SourceInfo(
            name=f"clips/{slug}-{digest[:16]}",
            split=split,
            length=len(self._clips),
            num_classes=len(names),
            class_names=tuple(names),
            has_captions=bool(self._clips[0].captions),
            licence="that of the clips in the folder",
            path=str(data_dir / "clips" / f"{slug}-{digest[:16]}"),
            fingerprint=hashlib.sha256(f"{digest} {split}".encode()).hexdigest(),
            has_pictures=False,
            has_clips=True,
        )

    def __len__(self) -> int:
        return self.info.length

    def __getitem__(self, index: int) -> Picture:
        return self._clips[index]

    def picture(self, record: Picture) -> bytes:
        """Raises DataError: there are clips."""
        raise DataError(f"{self.info.name} has clips, which data.frames asks for")

    def clip(self, record: Picture) -> Path:
        """Where a clip is: a file, or a directory of frames."""
        return record.path

    def label(self, record: Picture) -> int:
        """The class of a clip; only for sets with classes."""
        if record.label is None:
            raise DataError(f"{self.info.name} has no classes")
        return self._ids[record.label]

    def captions(self, index: int) -> list[str]:
        """All captions of clip `index`. Raises DataError if the set has none."""
        if not self.info.has_captions:
            raise DataError(f"{self.info.name} has no captions")
        return list(self._clips[index].captions)


def clip_splits(folder: str) -> list[str]:
    """The splits of a directory of clips. Raises as `ClipFolder`."""
    return list(scan(Path(folder).expanduser(), CLIPS))


def _digest(found: dict[str, list[Picture]], root: Path, home: Path, slug: str) -> str:
    """Of names, contents, labels and captions of all clips."""
    clips = [clip.path for clips in found.values() for clip in clips]
    files = {clip: frame_files(clip) if clip.is_dir() else [clip] for clip in clips}
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    contents = contents_of([file for of in files.values() for file in of], home / f".{slug}-{place}.contents.json")
    digest = hashlib.sha256()
    for split, clips in found.items():
        for path, label, captions in clips:
            told = [(os.path.relpath(file, root), contents[file]) for file in files[path]]
            digest.update(repr((split, told, label, captions)).encode())
    return digest.hexdigest()

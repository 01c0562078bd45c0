"""The `folder` dataset: any directory of pictures or clips, laid out as Hugging Face's imagefolder expects.

DIR/a.png  DIR/deep/b.jpg                   no classes, if every picture lies directly in DIR
DIR/cat/a.png  DIR/dog/b.jpg                one class for each folder in DIR
DIR/train/...  DIR/test/...                 the same, one folder for each split
DIR/metadata.jsonl | metadata.csv           rows of file_name and text | caption, label (also inside a
split's folder)
DIR/a.png  DIR/a.txt                        captions beside the picture, one a line
DIR/images/0.jpg  DIR/celeba-caption/0.txt  MultiModal-CelebA-HQ as it is given out: no classes; either may lie deeper

Of clips see zigma_jax/data/clips/files.py for what takes the place of a picture.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import constants
from tqdm import tqdm

from zigma_jax.data.datasets.classes import class_ids
from zigma_jax.data.datasets.tables import Row, captions_beside, find_caption_folder, find_table, read_table
from zigma_jax.data.pictures.files import SUFFIXES, find_pictures, is_directory, is_picture, list_visible
from zigma_jax.errors import DataError
from zigma_jax.files import write_atomically

SPLITS = ("train", "validation", "valid", "val", "test")


class Kind(NamedTuple):
    """What a folder is searched for: in words, how all of a directory are found, and what a file of it is called."""

    words: str
    find: Callable[[Path], list[Path]]
    is_one: Callable[[str], bool]
    suffixes: tuple[str, ...]


PICTURES = Kind("pictures", find_pictures, is_picture, SUFFIXES)


class Picture(NamedTuple):
    """One picture, or clip, of a folder; label None where there are no classes, captions empty where there are none."""

    path: Path
    label: str | None
    captions: tuple[str, ...]


def scan(folder: Path, kind: Kind = PICTURES) -> dict[str, list[Picture]]:
    """The pictures, or others of `kind`, of a folder by split, each in the order of their names or of the table's rows.

    Raises:
        DataError: naming `data.folder` and the rule broken: a missing folder, no pictures, a table that cannot be used
            (see `tables`), one file in two rows of different labels, rows without a label or caption beside rows with
            one, pictures both inside and outside of class folders or of the splits' folders.
    """
    where = f"data.folder={str(folder)!r}"
    if not folder.is_dir():
        raise DataError(f"{where}: there is no such directory")
    try:
        splits = _split_folders(folder)
        if table := find_table(folder):
            pictures = _from_table(table, kind)
            found = _by_first_folder(folder, pictures, splits) or {"train": pictures}
        elif captions := find_caption_folder(folder):
            splits = {name: path for name, path in splits.items() if kind.find(path)}  # others hold lists of names
            _check_nothing_beside(folder, splits, kind)
            found = {
                name: _scan_captioned(path, captions, kind) for name, path in (splits or {"train": folder}).items()
            }
        else:
            _check_nothing_beside(folder, splits, kind)
            found = {name: _scan_split(path, kind) for name, path in (splits or {"train": folder}).items()}
    except OSError as error:
        raise DataError(f"{where}: {error.filename} cannot be read ({error.strerror})") from error
    for name, pictures in found.items():
        if not pictures:
            place = str(splits.get(name, folder))
            raise DataError(f"{where}: no {kind.words} in {place!r} ({', '.join(kind.suffixes)})")
    everything = [picture for pictures in found.values() for picture in pictures]
    for column, has in (("label", lambda p: p.label is not None), ("caption", lambda p: bool(p.captions))):
        without = [picture for picture in everything if not has(picture)]
        if 0 < len(without) < len(everything):
            raise DataError(
                f"{where}: {len(without)} of {len(everything)} {kind.words} have no {column}, such as "
                f"{str(without[0].path)!r}; either all have one or none"
            )
    empty = sum(not caption.strip() for picture in everything for caption in picture.captions)
    if empty:
        logging.warning("%s: %d captions are empty, which trains a picture as if it had none", where, empty)
    return found


def _split_folders(folder: Path) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        if name in SPLITS and path.is_dir():
            if name in splits:
                raise DataError(f"data.folder={str(folder)!r}: has both {splits[name].name} and {path.name}; keep one")
            splits[name] = path
    return {name: splits[name] for name in SPLITS if name in splits}


def _check_nothing_beside(folder: Path, splits: dict[str, Path], kind: Kind) -> None:
    """That the folders of splits hold all pictures: a class called `test` would hide all other classes."""
    names = {path.name for path in splits.values()}
    for entry in list_visible(folder) if splits else ():
        if entry.name not in names and (kind.find(Path(entry)) if is_directory(entry) else kind.is_one(entry.name)):
            raise DataError(
                f"data.folder={str(folder)!r}: {', '.join(sorted(names))} are names of splits, and there are "
                f"{kind.words} beside them: {entry.name!r}; if all are classes, move them into "
                f"{str(folder / 'train')!r}"
            )


def _by_first_folder(folder: Path, pictures: list[Picture], splits: dict[str, Path]) -> dict[str, list[Picture]] | None:
    """The pictures of a table that stands above the folders of splits; None if some lie elsewhere."""
    name_of = {path.name: name for name, path in splits.items()}
    found: dict[str, list[Picture]] = {name: [] for name in splits}
    for picture in pictures:
        name = name_of.get(picture.path.relative_to(folder).parts[0])
        if name is None:
            return None
        found[name].append(picture)
    return {name: pictures for name, pictures in found.items() if pictures}


def _scan_split(folder: Path, kind: Kind) -> list[Picture]:
    if table := find_table(folder):
        return _from_table(table, kind)
    paths = kind.find(folder)
    depth = len(folder.parts)
    labels = [path.parts[depth] if len(path.parts) > depth + 1 else None for path in paths]
    _warn_of_empty_folders(folder, {path.parts[depth] for path in paths if len(path.parts) > depth}, kind)
    return _with_texts([Picture(path, label, ()) for path, label in zip(paths, labels, strict=True)])


def _scan_captioned(folder: Path, captions: Path, kind: Kind) -> list[Picture]:
    """Pictures anywhere in a folder whose captions lie in a directory of their own: its folders are no classes."""
    paths = kind.find(folder)
    told = captions_beside(paths, captions)
    return [Picture(path, None, texts) for path, texts in zip(paths, told, strict=True)]


def _warn_of_empty_folders(folder: Path, used: set[str], kind: Kind) -> None:
    folders = {entry.name for entry in list_visible(folder) if is_directory(entry)}
    if used & folders and (empty := folders - used):
        logging.warning("%s: folders without %s are no classes: %s", folder, kind.words, ", ".join(sorted(empty)))


def _from_table(table: Path, kind: Kind) -> list[Picture]:
    rows: dict[Path, list[Row]] = {}
    for row in read_table(table, folders=kind is not PICTURES):
        rows.setdefault(row.path, []).append(row)
    pictures = [_merged(table, same) for same in rows.values()]
    dropped = sum(len(row.captions) for same in rows.values() for row in same) - sum(len(p.captions) for p in pictures)
    if dropped:
        logging.warning("%s: left out %d captions that are empty or told twice, beside others", table, dropped)
    return _with_texts(pictures)


def _merged(table: Path, rows: list[Row]) -> Picture:
    """One picture from its rows: tables of captions often have one row a caption."""
    first, *others = rows
    for row in others:
        if row.label != first.label or not row.captions or not first.captions:
            raise DataError(
                f"{table}, line {row.line}: {str(row.path)!r} is also in line {first.line}; only captions may be in "
                "several rows, with the same label"
            )
    captions = dict.fromkeys(caption for row in rows for caption in row.captions)
    # Beside others an empty caption says nothing; alone it keeps the picture in the set.
    told = tuple(caption for caption in captions if caption.strip()) or tuple(captions)[:1]
    return Picture(first.path, first.label, told)


def _with_texts(pictures: list[Picture]) -> list[Picture]:
    """With the captions of the NAME.txt beside each, unless a table has told captions already."""
    if any(picture.captions for picture in pictures):
        return pictures
    told = captions_beside(picture.path for picture in pictures)
    return [picture._replace(captions=captions) for picture, captions in zip(pictures, told, strict=True)]


class Folder(tfds.core.GeneratorBasedBuilder):
    """The pictures of one directory, copied as they are (not decoded) into ArrayRecord.

    The listing (relative names, contents, labels, captions) is part of the data set's name: a changed directory is
    prepared anew, and the old copy stays until it is deleted. A copy of the directory is the same set.
    """

    VERSION = tfds.core.Version("2.0.0")  # 2: several captions a picture

    def __init__(self, *, folder: str, data_dir: str | None = None):
        root = Path(folder).expanduser()
        self._pictures = scan(root)
        everything = [picture for pictures in self._pictures.values() for picture in pictures]
        self._names, self._ids = class_ids(p.label for p in everything if p.label is not None)
        slug = re.sub(r"\W+", "_", root.resolve().name) or "root"
        place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        memory = Path(data_dir or constants.DATA_DIR).expanduser() / self.name / f".{slug}-{place}.contents.json"
        contents = contents_of([picture.path for picture in everything], memory)
        digest = hashlib.sha256()
        for split, pictures in self._pictures.items():
            for path, label, captions in pictures:
                name = os.path.relpath(path, root)
                digest.update(repr((split, name, contents[path], label, captions)).encode())
        root = self._root = root.resolve()
        config = tfds.core.BuilderConfig(
            name=f"{slug}-{digest.hexdigest()[:16]}", version=self.VERSION, description=_text(root)
        )
        super().__init__(config=config, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        first = next(iter(self._pictures.values()))[0]
        features: dict[str, Any] = {"image": tfds.features.Image(), "file_name": tfds.features.Text()}
        if first.label is not None:
            features["label"] = tfds.features.ClassLabel(names=self._names)
        if first.captions:
            features["captions"] = tfds.features.Sequence(tfds.features.Text())
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The pictures of {_text(self._root)}",
            features=tfds.features.FeaturesDict(features),
            license="that of the pictures in the folder",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split, pictures) for split, pictures in self._pictures.items()}

    def _generate_examples(self, split: str, pictures: list[Picture]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (path, label, captions) in enumerate(tqdm(pictures, f"folder: {split}", unit="picture")):
            try:
                record: dict[str, Any] = {"image": path.read_bytes(), "file_name": _text(path)}
            except OSError as error:
                raise _unreadable(path, error) from error
            record |= {} if label is None else {"label": self._ids[label]}
            record |= {"captions": list(captions)} if captions else {}
            yield index, record


def contents_of(paths: list[Path], memory: Path) -> dict[Path, str]:
    """The SHA-256 of each file.

    Sizes and times alone do not do: an edit may keep the size, and a copy has other times. They say which files have to
    be read again: `memory` holds what was found before, and is done without where it cannot be written.
    """
    try:
        known = dict(json.loads(memory.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}
    found: dict[str, list[Any]] = {}
    for path in tqdm(paths, "folder: what has changed", unit="file", delay=2):
        try:
            state, name = os.stat(path), str(path)
            about = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
            found[name] = known.get(name, [])
            if found[name][:-1] != about:
                with open(path, "rb") as file:
                    found[name] = [*about, hashlib.file_digest(file, "sha256").hexdigest()]
        except OSError as error:
            raise _unreadable(path, error) from error
    if found != known:
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memory, json.dumps(found).encode())
    return {path: found[str(path)][-1] for path in paths}


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"data.folder: {str(path)!r} cannot be read ({error.strerror})")


def _text(path: Path) -> str:
    """A path as text; what is no UTF-8 in it is written out."""
    return os.fsencode(path).decode(errors="backslashreplace")

"""Tars in the layout of the webdataset library, read as they are: what the original ZigMa trains on.

0001.image.jpg (.jpeg, .png, .webp; also 0001.jpg)   the picture
0001.caption.json                                    its captions, a list of texts (also caption.txt, txt)
0001.cls_id.cls (also cls)                           its class, a whole number; its name in cls_name.json
0001.img_feature256.npy (latent.npy, …)              its latent (c, h, w), already multiplied by 0.18215
"""

import contextlib
import glob
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float

from zigma_jax.data.source import SourceInfo
from zigma_jax.data.splits import by_split, parts
from zigma_jax.data.tar_index import ABSENT, few, open_index
from zigma_jax.errors import DataError

PICTURES = tuple(f"{prefix}{kind}" for prefix in ("image.", "") for kind in ("jpg", "jpeg", "png", "webp"))
CAPTIONS = ("caption.json", "caption.txt", "txt")
LABELS = ("cls_id.cls", "cls", "label.cls")
CLASS_NAME = "cls_name.json"
LATENTS = (
    "latent.npy",
    "latent_hr.npy",
    "img_feature256.npy",
    "img_feature512.npy",
    "img_feature1024.npy",
    "frame_feature256.npy",
)
LATENT_SCALE = 0.18215
"""What the latents in the original's tars were multiplied by."""
FACTOR = 8
"""Pixels a side of one latent, in the original's autoencoders."""
_LOOKED_AT = 16  # records that say which member has latents of which shape
_MAX_CLASSES = 100_000
_GRACE = 1000  # samples of which the fraction of incomplete ones is taken at its word


class TarSource:
    """The samples of one split of a set of tars; see `Source`. A record is a sample's place in the index.

    shards: see `find_shards`. Splits are told by the names of the tars, as in `splits.by_split`.
    data_dir: where the index goes if the directory of the tars cannot be written.
    image, label, caption: the fields to take; by default the first of `PICTURES`, `LABELS` and `CAPTIONS` that a
    sample has.

    Samples that lack a picture, or a class or captions where others have them, are left out and named in a warning.
    Raises DataError if there are more of them than `max_bad_fraction` (of at least 1000), and for tars or splits that
    cannot be used.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        split: str,
        *,
        data_dir: Path,
        image: str | None = None,
        label: str | None = None,
        caption: str | None = None,
        max_bad_fraction: float = 0.01,
    ):
        splits = shards_by_split(shards)
        self._index, home = open_index([file for of_split in splits.values() for file in of_split], data_dir)
        for note in self._index.notes:
            logging.warning("%s", note)
        self._pictures = self._columns("image", image, PICTURES)
        self._labels = self._columns("label", label, LABELS)
        self._captions = self._columns("caption", caption, CAPTIONS)
        complete = self._complete(max_bad_fraction)

        ends = np.cumsum([len(of_split) for of_split in splits.values()])
        rows = dict(
            zip(splits, np.split(complete, np.searchsorted(self._index.shard[complete], ends[:-1])), strict=True)
        )
        chosen = parts(split, {name: len(of_split) for name, of_split in rows.items()})
        self._rows = np.concatenate([rows[name][first:end] for name, first, end in chosen])
        if not len(self._rows):
            raise DataError(f"data.split={split!r} of data.shards={shards!r} is empty")
        names = self._class_names(complete)
        digest = hashlib.sha256(self._index.fingerprint.encode())
        digest.update(repr((image, label, caption)).encode() + self._rows.tobytes())
        self.info = SourceInfo(
            name=f"webdataset/{re.sub(r'\W+', '_', self._index.shards[0].parent.name)}-{self._index.fingerprint[:16]}",
            split=split,
            length=len(self._rows),
            num_classes=len(names),
            class_names=names,
            has_captions=self._captions is not None,
            licence="that of the pictures in the tars",
            path=str(home),
            fingerprint=digest.hexdigest(),
            has_pictures=self._pictures is not None,
        )

    def __len__(self) -> int:
        return self.info.length

    def __getitem__(self, index: int) -> int:
        return int(self._rows[index])

    def picture(self, record: int) -> bytes:
        """The encoded picture of a record. Raises DataError if the tars hold latents alone."""
        if self._pictures is None:
            raise DataError(f"{self.info.name} has no pictures; its members: {few(self._index.fields, 20)}")
        return self._index.read(record, self._index.fields[self._pictures[record]])

    def clip(self, record: int) -> bytes:
        """Raises DataError: the tars hold pictures, or the latents of clips."""
        raise DataError(f"{self.info.name} has no clips, but pictures or latents")

    def label(self, record: int) -> int:
        """The class of a record; only for sets with classes."""
        if self._labels is None:
            raise DataError(f"{self.info.name} has no classes")
        return int(self._index.numbers[record, self._labels[record]])

    def captions(self, index: int) -> list[str]:
        """All captions of record `index`. Raises DataError if the set has none, or if they cannot be read."""
        if self._captions is None:
            raise DataError(f"{self.info.name} has no captions")
        row = self[index]
        field = self._index.fields[self._captions[row]]
        try:
            return _texts(field, self._index.read(row, field))
        except ValueError as error:
            raise DataError(f"{self._index.where(row)}: {field} holds no captions ({error})") from None

    def latent(self, index: int, field: str) -> Float[np.ndarray, "*f h w c"]:
        """A latent of record `index`, float32, in the autoencoder's own units (divided by `LATENT_SCALE`).

        Raises DataError for what is no array (c, h, w), or (f, c, h, w) of a video, that is finite in float32.
        """
        row = self[index]
        content = self._index.read(row, field)
        try:
            array = _array(content)
            if array.ndim not in (3, 4) or array.dtype.kind != "f":
                raise ValueError(f"{array.dtype} {array.shape}, where floats (c, h, w) or (f, c, h, w) are wanted")
            with np.errstate(over="ignore"):
                latent = np.moveaxis(array.astype(np.float32), -3, -1) / np.float32(LATENT_SCALE)
            if not np.isfinite(latent).all():
                raise ValueError("its numbers are not finite")
        except ValueError as error:
            raise DataError(f"{self._index.where(row)}: {field} is no latent ({error})") from None
        return latent

    def members(self) -> tuple[str, ...]:
        """The names of the members that samples have."""
        return self._index.fields

    def latent_fields(self) -> list[str]:
        """The members that may hold latents: those of `LATENTS` that there are."""
        return [field for field in LATENTS if field in self.members()]

    def _columns(self, kind: str, wanted: str | None, usual: Sequence[str]) -> np.ndarray | None:
        """The column of the index to take for each sample, `ABSENT` where there is none; None if no sample has one."""
        fields = self._index.fields
        if wanted is not None and wanted not in fields:
            raise DataError(f"data.{kind}_column={wanted!r}: the samples' members are {few(fields, 20)}")
        if kind == "label" and wanted is not None and wanted.rsplit(".", 1)[-1] != "cls":
            raise DataError(f"data.label_column={wanted!r}: classes are read from members that end in cls")
        columns = [fields.index(field) for field in ([wanted] if wanted else usual) if field in fields]
        if not columns:
            return None
        of_sample = np.full(len(self._index.keys), ABSENT)
        present = self._index.numbers if kind == "label" else self._index.offsets
        for column in reversed(columns):
            of_sample[present[:, column] != ABSENT] = column
        return of_sample

    def _complete(self, max_bad_fraction: float) -> np.ndarray:
        """The samples that have all that they should."""
        complete = np.ones(len(self._index.keys), bool)
        for kind, columns in (("picture", self._pictures), ("class", self._labels), ("captions", self._captions)):
            if columns is None:
                continue
            lacking = np.flatnonzero(columns == ABSENT)
            complete[lacking] = False
            if len(lacking):
                logging.warning(
                    "%d of %d samples have no %s and are left out: %s",
                    len(lacking), len(complete), kind, few([self._index.where(int(row)) for row in lacking[:6]]),
                )  # fmt: skip
        bad = len(complete) - int(complete.sum())
        if bad > max_bad_fraction * max(len(complete), _GRACE) or bad == len(complete):
            example = self._index.where(int(np.flatnonzero(~complete)[0]))
            raise DataError(
                f"{bad} of {len(complete)} samples lack a picture, or a class or captions that others have, such as "
                f"{example}; data.max_bad_fraction={max_bad_fraction} allows "
                f"{max_bad_fraction * max(len(complete), _GRACE):.0f}"
            )
        return np.flatnonzero(complete)

    def _class_names(self, rows: np.ndarray) -> tuple[str, ...]:
        """Of all classes, from the first sample of each; their numbers where the tars hold no names."""
        if self._labels is None:
            return ()
        classes, first = np.unique(self._index.numbers[rows, self._labels[rows]], return_index=True)
        if classes[-1] >= _MAX_CLASSES:
            raise DataError(
                f"{self._index.where(int(rows[first[-1]]))}: class {classes[-1]}, of {_MAX_CLASSES} at most"
            )
        names = [str(number) for number in range(classes[-1] + 1)]
        for number, row in zip(classes, rows[first], strict=True):
            if CLASS_NAME in self._index.fields and self._index.offsets[row, self._index.fields.index(CLASS_NAME)] >= 0:
                try:
                    names[number] = _texts(CLASS_NAME, self._index.read(int(row), CLASS_NAME))[0]
                except (ValueError, IndexError):
                    continue
        return tuple(names)


def latent_field(source: TarSource, shape: tuple[int, ...]) -> str:
    """The member with latents (h, w, c) of this shape; of several, the first of `LATENTS`.

    It looks at records throughout the set, so that a few bad ones do not hide a member.
    Raises DataError naming the members with latents and their shapes if none has this one.
    """
    found: dict[str, Counter[tuple[int, ...]]] = {field: Counter() for field in source.latent_fields()}
    for index in dict.fromkeys(np.linspace(0, len(source) - 1, _LOOKED_AT).astype(int).tolist()):
        for field, shapes in found.items():
            with contextlib.suppress(Exception):  # damage shows as any exception, and is named when the set is read
                shapes[source.latent(index, field).shape] += 1
    field = max(found, key=lambda field: found[field][shape], default="")
    if not field or not found[field][shape]:
        said = [
            f"{field} of {' and '.join(map(str, shapes)) or 'nothing that can be read'}"
            for field, shapes in found.items()
        ]
        raise DataError(
            f"data.shards: {source.info.name} has no latents of (height, width, channels) {shape}, which "
            f"data.image_size and the autoencoder want; it has {', '.join(said) or f'only {few(source.members(), 20)}'}"
        )
    return field


def shards_by_split(shards: str | Sequence[str]) -> dict[str, list[Path]]:
    """The tars that `find_shards` finds, by split."""
    files = find_shards(shards)
    return by_split(files, Path(os.path.commonpath([file.parent for file in files])))


def find_shards(shards: str | Sequence[str]) -> list[Path]:
    """The tars that `data.shards` names: a file, a directory (with those below it), a glob or a range in braces.

    A text may name several of these with commas between them. Raises DataError for what names nothing.
    """
    items = re.split(r",(?![^{}]*\})", shards) if isinstance(shards, str) else list(shards)
    found: dict[Path, None] = {}
    for item in (item.strip() for item in items):
        if re.match(r"[a-z]+://|pipe:", item):
            raise DataError(f"data.shards={item!r}: tars are read from the disk; download them first")
        place = Path(item).expanduser()
        for path in [place] if place.exists() else map(Path, _expand(str(place))):
            if path.is_dir():
                matches = sorted(path.rglob("*.tar"))
                packed = next(path.rglob("*.tar.*"), None) or next(path.rglob("*.tgz"), None)
                reason = f"there are no tars in it{f', but {packed.name}: unpack it to a .tar' if packed else ''}"
            elif path.exists():
                matches, reason = [path], ""
            else:
                matches, reason = sorted(map(Path, glob.glob(str(path), recursive=True))), "there is no such file"
            if not matches:
                raise DataError(f"data.shards={item!r}: {path}: {reason}")
            found |= dict.fromkeys(match.absolute() for match in matches)
    return list(found)


def _expand(pattern: str) -> Iterator[str]:
    """a{08..10}b → a08b, a09b, a10b; a{x,y} → ax, ay."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    if ends := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        first, last = int(ends[1]), int(ends[2])
        if not 0 <= last - first < 1_000_000:
            raise DataError(f"data.shards={pattern!r}: the range {match[0]} runs backwards or is too long")
        values = [str(number).zfill(len(ends[1])) for number in range(first, last + 1)]
    else:
        values = match[1].split(",")
    for value in values:
        yield from _expand(pattern[: match.start()] + value + pattern[match.end() :])


def _texts(field: str, content: bytes) -> list[str]:
    """The texts in a member, perhaps none. Raises ValueError for anything but texts."""
    text = content.decode("utf-8-sig")
    found = json.loads(text) if field.endswith("json") else text.strip()
    if isinstance(found, dict):
        found = next((found[key] for key in ("caption", "captions", "text") if key in found), None)
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise ValueError("a text or a list of texts is wanted")
    return texts


def _array(content: bytes) -> np.ndarray:
    """The array of an .npy file, whose header must agree with its length. Raises ValueError."""
    file = io.BytesIO(content)
    try:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read[np.lib.format.read_magic(file)](file)
    except KeyError as error:
        raise ValueError(f"npy version {error}") from None
    if dtype.hasobject or int(np.prod(shape, dtype=object)) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"its header says {dtype} {shape}, and {len(content) - file.tell()} bytes follow")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")

"""Where each member of each sample lies in a set of tars in the layout of the webdataset library.

A sample is all members of one tar that share a key, the path up to the first dot of the file's name; the rest is the
field: `a/0001.image.jpg` is the field `image.jpg` of the sample `a/0001`. The index is made once by reading the
tars' headers alone, and lets any sample be read at random without unpacking.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging
from tqdm import tqdm

from zigma_jax.errors import DataError
from zigma_jax.files import write_atomically

_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<field>[^/]+)", re.DOTALL)
_MAX_FIELDS = 64
_MAX_NUMBER = 32  # bytes of a member that holds one class
_MAX_PADDING = 2 << 20  # zeros that a writer may add to fill its last record
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}

ABSENT = -1
"""In the place of an offset, a size or a class: the sample has no such member."""


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The samples of all shards, in the order of the shards and of the samples' first members.

    shards: paths of the tars. fields: names of the fields that occur.
    shard: int32 (n,), into `shards`. offsets, sizes: int64 (n, fields), in bytes, `ABSENT` where there is no member.
    numbers: int64 (n, fields), the whole number in members whose field ends in `cls`, else `ABSENT`.
    keys: the samples' keys. notes: what was found wrong, in words.
    fingerprint: hexadecimal, of all headers: it does not depend on where the tars lie or when they were copied.
    """

    shards: tuple[Path, ...]
    fields: tuple[str, ...]
    shard: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    numbers: np.ndarray
    keys: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprint: str

    def read(self, row: int, field: str) -> bytes:
        """A member's bytes. Raises DataError if the sample has none, or the tar has become shorter."""
        column = self.fields.index(field)
        offset, size = int(self.offsets[row, column]), int(self.sizes[row, column])
        if offset == ABSENT:
            raise DataError(f"{self.where(row)}: there is no {field}")
        with open(self.shards[self.shard[row]], "rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise DataError(f"{self.where(row)}: {field} ends early; the tar was changed after it was indexed")
        return content

    def where(self, row: int) -> str:
        """A sample in words: its tar and key."""
        return f"{self.shards[self.shard[row]]}, sample {_printable(self.keys[row])}"


def open_index(shards: Sequence[Path], fallback: Path) -> tuple[TarIndex, Path]:
    """The index of `shards`, and a directory to keep things in: that of the first shard if it can be written, else
    `fallback`.

    It is found again by the shards' names, sizes and times, so that changed tars are indexed anew.
    Raises DataError naming every tar that is compressed, damaged, cut off or not there.
    """
    problems, states = [], []
    for path in shards:
        try:
            state = path.stat()
            states.append((path.name, state.st_size, state.st_mtime_ns))
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
    if problems:
        raise DataError(_listed(problems))
    home = shards[0].parent if os.access(shards[0].parent, os.W_OK) else fallback
    key = hashlib.sha256(repr(states).encode(errors="surrogateescape")).hexdigest()[:16]
    name = f"webdataset-{key}.index.npz"
    for place in (shards[0].parent / name, fallback / name):
        if place.is_file():
            try:
                return _load(place, shards), place.parent if os.access(place.parent, os.W_OK) else fallback
            except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
                logging.warning("%s is damaged (%s) and is made anew", place, error)
    index = _scan(shards)
    try:
        write_atomically(home / name, _saved(index))
    except OSError as error:
        if home == fallback:
            raise
        logging.warning("The index of the tars cannot be kept in %s (%s): it goes to %s", home, error, fallback)
        home = fallback
        write_atomically(home / name, _saved(index))
    return index, home


def _scan(shards: Sequence[Path]) -> TarIndex:
    """Reads the headers of all shards."""
    digest = hashlib.sha256()
    columns: dict[str, int] = {}
    samples: list[tuple[int, str, dict[str, tuple[int, int, int]]]] = []
    notes: list[str] = []
    problems: list[str] = []
    for number, path in enumerate(tqdm(shards, "webdataset: index", unit="tar", disable=len(shards) < 2)):
        try:
            found, noted = _scan_one(path, digest)
        except DataError as error:
            problems.append(str(error))
            continue
        notes += noted
        samples += [(number, key, members) for key, members in found.items()]
        for members in found.values():
            for field in members:
                columns.setdefault(field, len(columns))
        if len(columns) > _MAX_FIELDS:
            examples = ", ".join(map(_printable, list(columns)[:5]))
            problems.append(f"{path}: more than {_MAX_FIELDS} kinds of members ({examples} …); a webdataset's have few")
            break
    if problems:
        raise DataError(_listed(problems))
    if not samples:
        raise DataError(f"data.shards: there are no samples in {len(shards)} tars, such as {shards[0]}")
    table = np.full((len(samples), len(columns), 3), ABSENT, np.int64)
    for row, (_, _, members) in enumerate(samples):
        for field, place in members.items():
            table[row, columns[field]] = place
    return TarIndex(
        shards=tuple(shards),
        fields=tuple(columns),
        shard=np.array([number for number, _, _ in samples], np.int32),
        offsets=table[:, :, 0],
        sizes=table[:, :, 1],
        numbers=table[:, :, 2],
        keys=tuple(key for _, key, _ in samples),
        notes=tuple(notes),
        fingerprint=digest.hexdigest(),
    )


def _scan_one(path: Path, digest) -> tuple[dict[str, dict[str, tuple[int, int, int]]], list[str]]:
    """The members (offset, size, number) of one tar by key and field, and what is wrong with it but can be used.

    As when a tar is unpacked, a member of the same name takes the place of the one before.
    """
    found: dict[str, dict[str, tuple[int, int, int]]] = {}
    repeated, unusable, notes = [], [], []
    with open(path, "rb") as file:
        head = file.read(8)
        for magic, program in _COMPRESSED.items():
            if head.startswith(magic):
                raise DataError(f"{path}: is compressed, and cannot be read at random; unpack it with `{program}`")
        size = os.path.getsize(path)
        if size == 0:
            raise DataError(f"{path}: is an empty file; download it again")
        file.seek(0)
        try:
            tar = tarfile.open(fileobj=file, mode="r:", errorlevel=2)  # noqa: SIM115 - `file` is what is closed
            for member in tar:
                if member.isdir():
                    continue
                digest.update(
                    repr((path.name, member.name, member.size, member.mtime)).encode(errors="surrogateescape")
                )
                match = _MEMBER.fullmatch(member.name.removeprefix("./"))
                if match is None or "__MACOSX" in member.name:
                    continue  # hidden files, and files without an ending
                if not member.isreg() or member.issparse():
                    unusable.append(member.name)
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(
                        f"{path}: is cut off in {_printable(member.name)}: it has {size:,} bytes, and that member ends "
                        f"at {member.offset_data + member.size:,}; download it again"
                    )
                key, field = match["key"], match["field"].lower()
                members = found.setdefault(key, {})
                if field in members:
                    repeated.append(member.name)
                number = _number(file, member) if field.rsplit(".", 1)[-1] == "cls" else ABSENT
                members[field] = (member.offset_data, member.size, number)
            end = tar.offset
        except tarfile.TarError as error:
            raise DataError(f"{path}: no tar, or one that is damaged or cut off ({error}); download it again") from None
        # tarfile stops without a word where it meets no header: only zeros are a tar's proper end.
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise DataError(f"{path}: is damaged at byte {end:,} of {size:,}; download it again")
    if size - end > _MAX_PADDING:
        raise DataError(
            f"{path}: only zeros follow after byte {end:,} of {size:,}, as in a download that never ended; download it "
            "again"
        )
    if not block:
        raise DataError(
            f"{path}: is cut off after a whole member, at {end:,} bytes: there is no end mark; download it again, or, "
            f"if its writer never closed it, add the mark with `head -c 1024 /dev/zero >> {path.name}`"
        )
    for names, problem in (
        (repeated, "occur twice, of which the later are used"),
        (unusable, "are links or sparse, and are left out"),
    ):
        if names:
            notes.append(f"{path}: {len(names)} members {problem}: {few(names)}")
    if not found:
        notes.append(f"{path}: holds no samples")
    return found, notes


def _number(file, member: tarfile.TarInfo) -> int:
    """The class in a member; `ABSENT` if there is no whole number in it, which makes the sample an incomplete one."""
    file.seek(member.offset_data)
    text = file.read(min(member.size, _MAX_NUMBER)).strip()
    return int(text) if re.fullmatch(rb"\d{1,9}", text) else ABSENT


def _saved(index: TarIndex) -> bytes:
    out = io.BytesIO()
    text = {"fields": index.fields, "keys": index.keys, "notes": index.notes, "fingerprint": index.fingerprint}
    np.savez_compressed(
        out,
        text=np.frombuffer(json.dumps(text).encode(), np.uint8),  # keys that are no UTF-8 come escaped
        shard=index.shard,
        offsets=index.offsets,
        sizes=index.sizes,
        numbers=index.numbers,
    )
    return out.getvalue()


def _load(path: Path, shards: Sequence[Path]) -> TarIndex:
    with np.load(path, allow_pickle=False) as file:
        text = json.loads(file["text"].tobytes())
        arrays = {name: file[name] for name in ("shard", "offsets", "sizes", "numbers")}
    lists = {name: tuple(text[name]) for name in ("fields", "keys", "notes")}
    return TarIndex(shards=tuple(shards), fingerprint=text["fingerprint"], **lists, **arrays)


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def few(names: Sequence[str], count: int = 5) -> str:
    """The first names, for a message."""
    return ", ".join(map(_printable, names[:count])) + (" …" if len(names) > count else "")


def _listed(problems: Sequence[str], count: int = 10) -> str:
    more = f"\n… and {len(problems) - count} more" if len(problems) > count else ""
    return "data.shards: " + "\n".join(problems[:count]) + more

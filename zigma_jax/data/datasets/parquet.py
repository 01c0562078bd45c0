"""The `parquet` dataset: pictures in parquet files, as data sets of the Hugging Face hub are stored."""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tqdm import tqdm

from zigma_jax.data.datasets.parquet_columns import Columns, choose, class_names
from zigma_jax.data.splits import by_split
from zigma_jax.errors import DataError

_ROWS = 32  # read at a time
_TAIL = 8  # bytes at the end of a file: the length of its footer, and its mark


def find_files(folder: Path) -> dict[str, list[Path]]:
    """The parquet files in a directory, and below it, by split. Raises DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"data.folder={str(folder)!r}: there is no such directory")
    files = [path for path in folder.rglob("*.parquet") if not path.name.startswith(".")]
    if not files:
        raise DataError(f"data.folder={str(folder)!r}: there are no .parquet files in it")
    return by_split(files, folder)


class Parquet(tfds.core.GeneratorBasedBuilder):
    """The pictures of parquet files with their classes and captions, copied as they are into ArrayRecord.

    files: by split. slug: the beginning of the set's name. columns: see `parquet_columns.choose`.
    max_bad_fraction: more pictures than this that cannot be read are an error (of at least 1000); fewer are left out
    and named in a warning.
    revision: the end of the set's name; by default a hash of the files' footers (their columns, lengths, ranges of
    values and offsets), so that changed files are prepared anew.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        files: Mapping[str, Sequence[Path]],
        slug: str,
        columns: Columns,
        data_dir: str | None = None,
        max_bad_fraction: float = 0.01,
        revision: str | None = None,
        about: str = "",
    ):
        self._files, self._about, self._max_bad_fraction = files, about, max_bad_fraction
        everything = [file for of_split in files.values() for file in of_split]
        schema = _open(everything[0]).schema_arrow
        self._columns = choose(schema, columns, str(everything[0]))
        for file in everything[1:]:
            other = _open(file).schema_arrow
            for column in filter(None, self._columns):
                if column not in other.names or other.field(column).type != schema.field(column).type:
                    raise DataError(
                        f"{file}: its column {column!r} is missing or of another type than in {everything[0]}"
                    )
        label = self._columns.label
        self._classes = class_names(schema, label, everything) if label else None
        if revision is None:
            digest = hashlib.sha256(repr(self._columns).encode())
            for split, of_split in files.items():
                for file in of_split:
                    digest.update(repr((split, file.name, file.stat().st_size)).encode() + _footer(file))
            revision = digest.hexdigest()[:16]
        config = tfds.core.BuilderConfig(name=f"{slug}-{revision}", version=self.VERSION, description=about)
        super().__init__(config=config, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {"image": tfds.features.Image()}
        if self._classes is not None:
            features["label"] = tfds.features.ClassLabel(names=list(self._classes.values()))
        if self._columns.caption is not None:
            features["captions"] = tfds.features.Sequence(tfds.features.Text())
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._about or "Pictures from parquet files",
            features=tfds.features.FeaturesDict(features),
            license="that of the pictures: see where the files come from",
            metadata=tfds.core.MetadataDict(columns=self._columns._asdict(), about=self._about),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split, files) for split, files in self._files.items()}

    def _generate_examples(self, split: str, files: Sequence[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
        total = sum(_open(file).metadata.num_rows for file in files)
        bad, written = 0, 0
        for row, (where, record) in enumerate(tqdm(self._rows(files), f"{self.name}: {split}", total, unit="picture")):
            if problem := _unreadable(record["image"]):
                bad += 1
                if bad <= 10:
                    logging.warning("%s holds no picture that can be read and is left out: %s", where, problem)
                if bad > self._max_bad_fraction * max(total, 1000) or bad == total:
                    raise DataError(
                        f"{bad} of the first {row + 1} rows of the split {split} hold no picture that can be read, the "
                        f"last of them {where}: {problem}; data.max_bad_fraction={self._max_bad_fraction}"
                    )
                continue
            yield written, record
            written += 1
        if bad:
            logging.warning("%d of %d rows of the split %s were left out", bad, total, split)

    def _rows(self, files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each row, and where it stands in words."""
        image, label, caption = self._columns
        ids = {value: number for number, value in enumerate(self._classes or ())}
        for file in files:
            row = 0
            try:
                for batch in _open(file).iter_batches(_ROWS, columns=[column for column in self._columns if column]):
                    for values in batch.to_pylist():
                        where = f"{file}, row {row}"
                        record: dict[str, Any] = {"image": _encoded(values[image])}
                        if label:
                            record["label"] = ids.get(values[label], -1)
                        if caption:
                            record["captions"] = _captions(values[caption], where)
                        yield where, record
                        row += 1
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{file}: is damaged after row {row} ({_line(error)})") from None


def slug_of(name: str) -> str:
    """A name that may stand in a directory's name."""
    return re.sub(r"[^\w.-]+", "-", name.replace("/", "--")).strip("-.") or "parquet"


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        with open(file, "rb") as content:
            pointer = content.read(40).startswith(b"version https://git-lfs")
        what = (
            "a pointer of Git LFS, not the file itself" if pointer else f"no parquet file, or damaged ({_line(error)})"
        )
        raise DataError(f"{file}: is {what}; download it again") from None


def _footer(file: Path) -> bytes:
    with open(file, "rb") as content:
        content.seek(-_TAIL, io.SEEK_END)
        length = int.from_bytes(content.read(4), "little")
        content.seek(-_TAIL - length, io.SEEK_END)
        return content.read(length)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _encoded(value: Any) -> bytes | None:
    return value.get("bytes") if isinstance(value, dict) else value


def _unreadable(content: bytes | None) -> str:
    """Why bytes are no picture, by their header; empty if they are one."""
    if not content:
        return "it has no bytes"
    try:
        Image.open(io.BytesIO(content)).close()
    except Exception as error:  # damage shows as any exception of the decoder
        return f"{type(error).__name__}: {_line(error)}"
    return ""


def _captions(value: Any, where: str) -> list[str]:
    """All that there are: none of a null, and of a list those that are not null."""
    texts = [value] if isinstance(value, str) else [text for text in value or () if text is not None]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: the captions are {str(value)[:80]!r}, which are no texts")
    return texts

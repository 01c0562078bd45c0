"""Tables beside pictures: metadata.jsonl, metadata.csv, and captions in NAME.txt, as rows of checked values.

Every error names the table and the line, because the person who can mend it has thousands of them.
"""

import codecs
import csv
import dataclasses
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zigma_jax.data.pictures.files import is_picture
from zigma_jax.errors import DataError

NAME = "file_name"
CAPTION_COLUMNS = ("text", "caption", "captions")
LABEL_COLUMNS = ("label", "class")
CAPTION_FOLDER = "celeba-caption"
"""Where MultiModal-CelebA-HQ has its NAME.txt."""

_BOMS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A picture's line in a table. label None: none is given; captions: all that are given, perhaps none."""

    line: int
    path: Path
    label: str | None
    captions: tuple[str, ...]


def find_table(folder: Path) -> Path | None:
    """The table of a folder, if it has one. Raises DataError for two, and for one of a kind that is not read."""
    found = sorted(path for path in folder.iterdir() if path.stem.lower() == "metadata" and path.is_file())
    tables = [path for path in found if path.suffix.lower() in (".jsonl", ".csv")]
    if len(tables) > 1:
        raise DataError(f"data.folder: {str(folder)!r} has both {' and '.join(p.name for p in tables)}; keep one")
    for path in found:
        if not tables and path.suffix.lower() in (".json", ".ndjson", ".tsv", ".parquet", ".arrow", ".xlsx"):
            raise DataError(f"{path}: tables are metadata.jsonl or metadata.csv; save it as one of them")
    return tables[0] if tables else None


def read_table(table: Path, folders: bool = False) -> list[Row]:
    """The rows of a table. `folders`: whether a row may be of a directory, the frames of a clip.

    Raises:
        DataError: no UTF-8, a line that is no row, a column that is there twice, a file that isn't there or that lies
            outside of the table's folder, and labels and captions of unusable types.
    """
    read = _csv_rows if table.suffix.lower() == ".csv" else _jsonl_rows
    rows = enumerate(read(table, _text(table)), 1)
    return [
        _row(f"{table}, line {line}, row {number}", table.parent, line, values, folders)
        for number, (line, values) in rows
    ]


def captions_beside(pictures: Iterable[Path], elsewhere: Path | None = None) -> list[tuple[str, ...]]:
    """Of each picture NAME.png the lines of NAME.txt, each a caption; none without such a file.

    The file lies beside the picture, or in the directory `elsewhere` if that is given.
    """
    texts: dict[str, dict[str, str]] = {}
    captions = []
    for folder, name in (os.path.split(picture) for picture in pictures):
        place = folder if elsewhere is None else str(elsewhere)
        if place not in texts:  # listed once: asking for the file of each picture would take longer than all else
            names = os.listdir(place or ".")
            texts[place] = {name[:-4]: name for name in names if name.lower().endswith(".txt")}
        text = texts[place].get(os.path.splitext(name)[0])
        captions.append(_lines(Path(place, text)) if text else ())
    return captions


def find_caption_folder(folder: Path) -> Path | None:
    """The directory `CAPTION_FOLDER` in a folder, or deeper in it. Raises DataError for two of them."""
    found = [Path(place, CAPTION_FOLDER) for place, folders, _ in os.walk(folder) if CAPTION_FOLDER in folders]
    if len(found) > 1:
        raise DataError(f"data.folder={str(folder)!r}: has both {' and '.join(map(str, found[:2]))}; keep one")
    return found[0] if found else None


def _lines(path: Path) -> tuple[str, ...]:
    lines = [line.removesuffix("\r") for line in _text(path).split("\n")]
    return tuple(line for line in lines if line.strip()) or ("",)


def _text(path: Path) -> str:
    content = path.read_bytes()
    for bom, name in _BOMS.items():
        if content.startswith(bom):
            raise DataError(f"{path}: is {name}; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: is not UTF-8, but perhaps Latin-1 or another old encoding; save it as UTF-8, for "
            "example with `iconv -f latin1 -t utf-8`"
        ) from None
    if "\0" in text:
        raise DataError(f"{path}: has zero bytes, as UTF-16 has; save it as UTF-8")
    return text


def _csv_rows(table: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # One cell may be as long as the table. The limit belongs to the whole process, so it is put back.
    limit = csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, line = None, 1
    try:
        for cells in reader:
            first, line = line, reader.line_num + 1
            if not any(cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_header(table, header)
                continue
            if len(cells) > len(header):
                raise DataError(
                    f"{table}, line {first}: {len(cells)} cells, where the header has {len(header)}; a cell with a "
                    'comma is written in quotes: "a, b"'
                )
            for cell in cells:
                if swallowed := _swallowed(table, cell):
                    raise DataError(
                        f"{table}, line {first}: a quote is not closed; its cell has the row of {swallowed!r}"
                    )
            yield first, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise DataError(
            f'{table}, line {line}: no CSV ({error}); a cell begins and ends with a quote, and a quote in it is ""'
        ) from None
    finally:
        csv.field_size_limit(limit)


def _swallowed(table: Path, cell: str) -> str | None:
    """A picture of the folder that fills a cell of its own on a later line of this cell: a row that a quote ate."""
    for line in cell.split("\n")[1:]:
        for name in (part.strip(' \r"') for part in line.split(",")):
            if len(name) < 200 and is_picture(name) and (table.parent / name).is_file():
                return name
    return None


def _check_header(table: Path, header: list[str]) -> None:
    for name in (NAME, *CAPTION_COLUMNS, *LABEL_COLUMNS):
        if header.count(name) > 1:
            raise DataError(f"{table}: has the column {name} {header.count(name)} times; keep one")
    if NAME not in header:
        raise DataError(f"{table}: no column {NAME} (columns: {', '.join(header)}), separated by commas")


def _jsonl_rows(table: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Lines end at \n alone: str.splitlines would also cut at U+2028 and \x85, which captions have.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{table}, line {number}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise DataError(
                f'{table}, line {number}: is a {type(values).__name__}, where each line is an object, {{"{NAME}": …}}'
            )
        yield number, values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("an object has a name twice")
    return values


def _row(where: str, folder: Path, line: int, values: dict[str, Any], folders: bool) -> Row:
    name = values.get(NAME)
    if name in (None, ""):
        raise DataError(f"{where}: no {NAME} (columns: {', '.join(map(str, values))})")
    if not isinstance(name, str):
        raise DataError(f"{where}: {NAME}={name!r} must be text")
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == "..":
        raise DataError(f"{where}: {NAME}={name!r} leads out of {str(folder)!r}; copy or link the picture into it")
    path = folder / os.path.normpath(name)
    try:
        found = path.is_file() or (folders and path.is_dir())
    except (OSError, ValueError):
        found = False
    if not found:
        raise DataError(f"{where}: {NAME}={name!r} is no file in {str(folder)!r}")
    label = next((values[c] for c in LABEL_COLUMNS if not _missing(values.get(c)) and values[c] != ""), None)
    caption = next((values[c] for c in CAPTION_COLUMNS if not _missing(values.get(c))), None)
    return Row(line, path, _label(where, label), _captions(where, caption))


def _missing(value: Any) -> bool:
    """pandas writes NaN where there is no value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _label(where: str, label: Any) -> str | None:
    if label is None:
        return None
    if isinstance(label, str) and re.fullmatch(r"\[.*\]|\{.*\}", label, re.DOTALL):
        raise DataError(f"{where}: label={label!r}: a picture has one label, a name or a number")
    if not isinstance(label, str | int | float) or (isinstance(label, float) and math.isinf(label)):
        raise DataError(f"{where}: label={label!r}: a picture has one label, a name or a number")
    return _unicode(where, str(label))


def _captions(where: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    captions = []
    for caption in value if isinstance(value, list) else [value]:
        if isinstance(caption, bool) or not isinstance(caption, str | int | float):
            if _missing(caption):
                continue
            raise DataError(f"{where}: caption {caption!r}: captions are text, or a list of texts")
        if not _missing(caption):
            captions.append(_unicode(where, str(caption)))
    return tuple(captions)


def _unicode(where: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: {text!r} has half of a surrogate pair, which is no character") from None
    return text

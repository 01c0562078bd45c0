"""Splits of a set that comes as many files, by the names of the files, and parts of splits."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePath

import tensorflow_datasets as tfds
from tensorflow_datasets.core.splits import AbstractSplit

from zigma_jax.errors import DataError

_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_NUMBERED = re.compile(r"(?P<name>.*?)[-_.]?(?P<number>\d+)-of-(?P<count>\d+)(-[0-9a-f]{16})?")


def by_split[P: PurePath](files: Iterable[P], root: PurePath) -> dict[str, list[P]]:
    """Files under `root` by split, each in the order of their names.

    `train-00003-of-00012.parquet` belongs to `train`; so does what has `train` as a word of its name or of a folder's.
    `val`, `valid` and `dev` are `validation`. Files that name no split belong to `train`.
    Raises DataError if one of the numbers "-of-00012" is missing.
    """
    splits: dict[str, list[P]] = defaultdict(list)
    numbers: dict[tuple[PurePath, str, int], set[int]] = defaultdict(set)
    for file in sorted(files):
        splits[_split_of(file.relative_to(root))].append(file)
        if match := _NUMBERED.fullmatch(file.stem):
            numbers[file.parent, match["name"], int(match["count"])].add(int(match["number"]))
    for (folder, name, count), there in numbers.items():
        if count <= 100_000 and (missing := sorted(set(range(count)) - there)):
            raise DataError(
                f"{folder}: {len(missing)} of the {count} files {name!r} are missing, such as number {missing[0]}; "
                "copy or download them too"
            )
    return dict(splits)


def _split_of(path: PurePath) -> str:
    match = _NUMBERED.fullmatch(path.stem)
    for part in (match["name"] if match else path.stem, *reversed(path.parts[:-1])):
        for word in re.split(r"[^a-zA-Z]+", part):
            if word.lower() in _NAMES:
                return _NAMES[word.lower()]
    return (re.sub(r"\W+", "_", match["name"]) if match else "") or "train"


def canonical(split: str) -> str:
    """A split's name as it is given here: `validation` for `val`, `valid` and `dev`; others as they are."""
    return _NAMES.get(split.lower()) or re.sub(r"\W+", "_", split)


def parts(split: str, lengths: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """(split, first record, record after the last) of each part that "train[:90%]+test" names.

    Raises DataError for splits that are not in `lengths`, and for what cannot be read as a split.
    """
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[length], num_bytes=0) for name, length in lengths.items()
    }
    try:
        found = AbstractSplit.from_spec(split).to_absolute(infos)
    except (ValueError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"data.split={split!r}: there are the splits {', '.join(sorted(lengths))} ({reason})") from None
    # None stands for the beginning, and for the end
    return [(p.splitname, p.from_ or 0, lengths[p.splitname] if p.to is None else p.to) for p in found]

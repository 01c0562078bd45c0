"""From the labels of pictures, which are text, to classes 0 … n − 1 with names."""

import re
from collections.abc import Iterable

from zigma_jax.errors import DataError

_MOST = 1_000  # numbers below it stay as they are, however few of them are used: part of ImageNet's classes, say

_ODD = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")  # ends of lines, and what is no text


def class_ids(labels: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """The classes' names in the order of their ids, and the id of each label.

    Labels that are all whole numbers, written as 7 or 7.0, keep their numbers, as long as these are below 1,000 or
    below ten times the number of labels. Other numbers are names: 007, which is not how the number is written;
    20240131, which would make twenty million classes. Names are sorted; if all are numbers, by their values.

    Raises:
        DataError: a negative number, and "nan" among numbers.
    """
    names = set(labels)
    numbers = {name: number for name in names if (number := _number(name)) is not None}
    odd = sorted(
        name for name in names - numbers.keys() if name.strip().lower() in ("nan", "inf", "-inf", "none", "null")
    )
    if odd and len(numbers) + len(odd) == len(names) and numbers:
        raise DataError(f"data.folder: label={odd[0]} among numbers: a label is missing there")
    if len(numbers) < len(names):
        order = sorted(names)
    elif negative := sorted(numbers, key=numbers.__getitem__)[:1]:
        if numbers[negative[0]] < 0:
            raise DataError(f"data.folder: label={negative[0]} is out of range: labels that are numbers start at 0")
        whole = {name: int(number) for name, number in numbers.items() if re.fullmatch(r"(0|[1-9][0-9]*)(\.0+)?", name)}
        most = max(whole.values(), default=0)
        if len(whole) == len(names) and most < max(_MOST, 10 * len(names)):
            return [str(number) for number in range(most + 1)], whole
        order = sorted(names, key=lambda name: (numbers[name], name))
    else:
        order = []
    return [_on_one_line(name) for name in order], {name: place for place, name in enumerate(order)}


def _number(name: str) -> float | None:
    return float(name) if re.fullmatch(r"[-+]?[0-9]{1,300}(\.[0-9]+)?", name) else None


def _on_one_line(name: str) -> str:
    """The name as it can stand in TFDS's list of names, one a line, each stripped; what could not is quoted."""
    return ascii(name) if name.strip() != name or _ODD.search(name) else name

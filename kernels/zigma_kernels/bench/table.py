"""The table of times, from rows that may have been measured in another process, or on another day."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

type Row = Mapping[str, Any]

COLUMNS = {  # format on accelerators, format on a CPU; None where the column is left out
    "case": ("", ""),
    "b x L x d": ("", ""),
    "dtype": ("", ""),
    "implementation": ("", ""),
    "forward, ms": (".3f", ".1f"),
    "forward, of limit": (".0%", None),
    "forward + backward, ms": (".3f", ".1f"),
    "of limit": (".0%", None),
    "of processors, ms": (None, ".1f"),
    "extra memory, MiB": (".0f", ".0f"),
    "x input": (".1f", ".1f"),
    "speed-up": (".1f", ".1f"),
}


def shown(cpu: bool) -> list[str]:
    """The columns for a CPU, or for an accelerator."""
    return [column for column, formats in COLUMNS.items() if formats[cpu] is not None]


def header(cpu: bool) -> str:
    """The first two lines of the table."""
    return f"{markdown_row(shown(cpu))}\n{'|---' * len(shown(cpu))}|"


def line(row: Row, cpu: bool) -> str:
    """A row as text; a cell is empty where nothing was measured."""
    return markdown_row(
        "" if row.get(column) is None else format(row[column], COLUMNS[column][cpu]) for column in shown(cpu)
    )


def with_speed_up(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows of one case, each with how many times faster it is than the slowest."""
    times = [row["forward + backward, ms"] for row in rows]
    return [{**row, "speed-up": max(times) / time} for row, time in zip(rows, times, strict=True)]


def markdown_row(cells: Iterable[object]) -> str:
    """Cells between bars."""
    return f"| {' | '.join(map(str, cells))} |"

"""What XLA says of a compiled step: the collectives in it, with their bytes, and its memory."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "f8": 1, "bf16": 2, "f16": 2}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r" ([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange between devices, over a whole step.

    kind: as XLA calls it. count: how often it runs. bytes: of the larger of its operand and result on one device,
        all runs together: what is gathered, reduced or exchanged.
    """

    kind: str
    count: int
    bytes: int


def collectives(program: str) -> dict[str, Collective]:
    """The collectives of a compiled program, given as text of XLA's, by kind; those in loops as often as they run.

    A loop whose number of passes XLA does not know counts as one pass.
    """
    computations = _computations(program)
    found: dict[str, Collective] = {}
    for kind, size, times in _walk(computations, next(name for name in computations if name.startswith("ENTRY ")), 1):
        before = found.get(kind, Collective(kind, 0, 0))
        found[kind] = Collective(kind, before.count + times, before.bytes + size * times)
    return found


def total_bytes(found: dict[str, Collective]) -> int:
    """Of all kinds together."""
    return sum(each.bytes for each in found.values())


def _computations(program: str) -> dict[str, list[str]]:
    """The lines of each computation by its name; the entry's name begins with ENTRY."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        if match := _COMPUTATION.match(line.strip()):
            name = f"ENTRY {match[1]}" if line.startswith("ENTRY") else match[1]
            lines = computations.setdefault(name, [])
        elif " = " in line:
            lines.append(line.strip())
    return computations


def _walk(computations: dict[str, list[str]], name: str, times: int) -> Iterator[tuple[str, int, int]]:
    """(kind, bytes, how often) of the collectives in a computation, and in those that it calls."""
    for line in computations.get(name, ()):
        result, operation = _instruction(line)
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            yield kind, _size(result, operation, line), times
            continue
        passes = _passes(line, computations) if operation == "while" else 1
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip().removeprefix("%") for branch in branches.split(",")]
        for other in called:
            yield from _walk(computations, other, times * passes)


def _passes(line: str, computations: dict[str, list[str]]) -> int:
    """How often a loop's body runs: as XLA says, or, for TPUs, as its condition does: counter < constant."""
    if trips := _TRIPS.search(line):
        return int(trips[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    lines = computations.get(condition[1], []) if condition else []
    bounds = [match[1] for each in lines if (match := re.search(r"^%?[\w.\-]+ = s32\[\]\S* constant\((\d+)\)", each))]
    counts = any(each.startswith("ROOT ") and " compare(" in each and "direction=LT" in each for each in lines)
    return int(bounds[0]) if counts and len(bounds) == 1 else 1


def _instruction(line: str) -> tuple[str, str]:
    """The result's type, and the operation, of "NAME = TYPE OPERATION(…"; a tuple's type has parentheses, and in a
    TPU's layouts, T(8,128), there are more."""
    rest = line.partition(" = ")[2]
    depths = itertools.accumulate((character == "(") - (character == ")") for character in rest)
    end = next((i for i, depth in enumerate(depths) if depth == 0), 0) if rest.startswith("(") else 0
    operation = _OPERATION.search(rest, end)
    return (rest[: operation.start()], operation[1]) if operation else ("", "")


def _size(result: str, operation: str, line: str) -> int:
    """The bytes of a collective: those of its result, but of what is scattered those of its operand."""
    sizes = [_array_bytes(kind, shape) for kind, shape in _ARRAY.findall(result)]
    if operation == "reduce-scatter":
        groups = re.search(r"replica_groups=(?:\{\{([\d,]*)\}|\[(\d+),(\d+)\])", line)
        members = 1 if groups is None else int(groups[3]) if groups[3] else len(groups[1].split(","))
        return sum(sizes) * members
    # An asynchronous one returns its operand beside its result.
    return max(sizes) if operation.endswith("-start") and operation != "all-reduce-start" else sum(sizes)


def _array_bytes(kind: str, shape: str) -> int:
    width = next((size for name, size in _BYTES.items() if kind.startswith(name)), 0)
    width = width or int(re.sub(r"\D", "", kind) or 8) // 8
    return width * math.prod(int(side) for side in shape.split(",") if side)

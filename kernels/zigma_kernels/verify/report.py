"""Tables of what was found, as docs/benchmarks.md has them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zigma_kernels import trust
from zigma_kernels.bench import table
from zigma_kernels.bench.table import markdown_row
from zigma_kernels.verify.tasks import OPS, Task, cases_of, models_folder

type Result = dict[str, Any]


def is_wrong(result: Result) -> bool:
    """Whether a task failed, or showed that something is not as it should be."""
    return "error" in result or not result.get("right", True)


def in_short(result: Result) -> str:
    """A result in a few words."""
    for name in ("error", "skipped", "summary"):
        if name in result:
            return f"{name}: {result[name]}" if name != "summary" else result[name]
    if "row" in result:
        row = result["row"]
        return f"forward {row['forward, ms']:.3f} ms, with backward {row['forward + backward, ms']:.3f} ms"
    if "errors" in result:
        name, error = worst(result)
        same = "the same bits twice" if result["same_bits"] else "TWO RUNS DIFFER"
        verdict = "right" if result["right"] else "WRONG"
        return f"{verdict}, {name} is off by {_number(error)} of {result['tolerance']:.1e} allowed, {same}"
    return "done"


def worst(result: Result) -> tuple[str, Any]:
    """The array with the largest error, and the error."""
    return max(result["errors"].items(), key=lambda pair: float("inf") if isinstance(pair[1], str) else pair[1])


def tables(tasks: Sequence[Task], found: dict[str, Any], workdir: Path) -> str:
    """Everything that is known, in Markdown."""
    about, results = found["about"], found["tasks"]
    done = {task: results[task.key] for task in tasks if task.key in results}
    days = sorted({result["measured"][:10] for result in done.values()})
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    parts = [
        f"## {about['device']}, {' to '.join(dict.fromkeys((*days[:1], *days[-1:])))}",
        f"Made by `python -m zigma_kernels.verify`; {versions}. {len(done)} of {len(tasks)} tasks are done.",
        *_agreement(done),
        *_sanitizer(done),
        *_times(done, about["platform"] == "cpu"),
        *_models(done, workdir),
        *_exceptions(done),
        *_verified(tasks, done, about),
    ]
    return "\n\n".join(parts) + "\n"


def _agreement(done: dict[Task, Result]) -> list[str]:
    checked = {task: result for task, result in done.items() if "errors" in result}
    if not checked:
        return []
    head = (
        "op",
        "implementation",
        "dtype",
        "cases",
        "right",
        "same bits twice",
        "largest error",
        "of what, in which case",
    )
    lines = [markdown_row(head), "|---" * len(head) + "|"]
    for group in dict.fromkeys((task.op, task.implementation, result["dtype"]) for task, result in checked.items()):
        own = {t.what: r for t, r in checked.items() if (t.op, t.implementation, r["dtype"]) == group}
        name = max(own, key=lambda name: _sortable(worst(own[name])[1]))
        right, same = (sum(result[field] for result in own.values()) for field in ("right", "same_bits"))
        array, error = worst(own[name])
        lines.append(markdown_row((*group, len(own), right, same, _number(error), f"{array}, {name}")))
    about = "Values and gradients against float64, errors as fractions of an array's largest entry:"
    return ["### Agreement", about, "\n".join(lines)]


def _sanitizer(done: dict[Task, Result]) -> list[str]:
    lines = [
        f"- {task.what}, {task.op} by {task.implementation}: {result['summary']}"
        for task, result in done.items()
        if "summary" in result
    ]
    return ["### compute-sanitizer", "\n".join(lines)] if lines else []


def _times(done: dict[Task, Result], cpu: bool) -> list[str]:
    parts = []
    for op in OPS:
        rows = [result["row"] for task, result in done.items() if task.op == op and "row" in result]
        lines = [table.header(cpu)]
        for case in cases_of(op):  # their order, and not that of the tasks
            of_case = table.with_speed_up([row for row in rows if row["case"] == case])
            lines += [table.line(row, cpu) for row in of_case]
        if rows:
            parts += [f"### {op}", "\n".join(lines)]
        parts += [
            f"In {row['case']!r} y of {row['implementation']} differs from that of xla by {row['y differs']:.1e}."
            for row in rows
            if "y differs" in row
        ]
    return parts


def _models(done: dict[Task, Result], workdir: Path) -> list[str]:
    path = models_folder(workdir) / "table.md"
    if not path.exists() or not any(task.kind == "model" for task in done):
        return []
    return ["### Whole models", path.read_text(encoding="utf-8").replace("### ", "#### ").strip()]


def _exceptions(done: dict[Task, Result]) -> list[str]:
    parts = []
    for title, chosen in (
        ("Wrong, or failed", is_wrong),
        ("Not possible here", lambda result: "skipped" in result),
    ):
        lines = [f"- {task.key}: {in_short(result)}" for task, result in done.items() if chosen(result)]
        if lines:
            parts += [f"### {title}", "\n".join(lines)]
    return parts


def _verified(tasks: Sequence[Task], done: dict[Task, Result], about: dict[str, Any]) -> list[str]:
    """Lines for `trust.VERIFIED`: kernels of which every case is right."""
    lines = []
    for op, implementation in trust.SOURCES:
        own = [t for t in tasks if (t.kind, t.op, t.implementation) == ("agreement", op, implementation)]
        results = [done.get(task, {}) for task in own]
        if own and about["platform"] != "cpu" and all(result.get("right") for result in results):
            lines.append(f"    {(op, implementation, trust.fingerprint(op, implementation), about['kind'])},")
    if not lines:
        return []
    return ["### Verified", "For `VERIFIED` in `zigma_kernels/trust.py`:", "\n".join(["```python", *lines, "```"])]


def _sortable(error: Any) -> float:
    return float("inf") if isinstance(error, str) else error


def _number(error: Any) -> str:
    return error if isinstance(error, str) else f"{error:.1e}"

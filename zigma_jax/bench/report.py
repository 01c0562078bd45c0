"""Table and figure of what was measured."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from zigma_jax.errors import MissingPackageError
from zigma_jax.files import AnyPath, open_atomically

Record = dict[str, Any]
_GIB = 2**30
TRANSFORMERS = ("sit", "torch_sit")  # what crossing points are taken with


def make_table(records: Sequence[Record]) -> str:
    """Markdown: for each operation a row a number of tokens and model; times and memory, and them over the first SiT's.

    The transformer that the others are compared with is `sit` of the same tokens, operation and remat, in the same
    table; of a model that was measured with several settings of remat, each is a row.
    """
    timed = any("seconds" in record for record in records)
    header = ["tokens × batch", "model", "parameters", "remat"]
    header += ["s", "÷ sit"] if timed else ["GFLOP", "GB moved"]
    header += ["GiB, peak", "÷ sit", "GiB, XLA's account"] if timed else ["GiB, temporary", "÷ sit"]
    lines = []
    for operation in dict.fromkeys(record["operation"] for record in records):
        rows = [record for record in records if record["operation"] == operation]
        rows.sort(key=lambda record: record["tokens"])
        lines += [f"### {operation}", "", _row(header), _row(["--:", "---", *["--:"] * (len(header) - 2)])]
        for record in rows:
            sit = _of_sit(rows, record)
            cells = [f"{record['tokens']:,} × {record['batch']}", record["model"]]
            if "error" in record:
                lines.append(_row([*cells, record["error"], *[""] * (len(header) - 3)]))
                continue
            cells += [f"{record['parameters'] / 1e6:.1f} M", record["remat"]]
            if timed:
                cells += [f"{record['seconds']:.3g}", _ratio(record, sit, "seconds")]
                cells += [f"{record['peak_bytes'] / _GIB:.2f}", _ratio(record, sit, "peak_bytes")]
                account = record.get("account_bytes")
                cells += [f"{account / _GIB:.2f}" if account else ""]
            else:
                for field in ("flops", "bytes_accessed"):
                    cells.append(f"{record[field] / 1e9:,.1f}" if record.get(field) else "")
                cells += [f"{record['temporary_bytes'] / _GIB:.2f}", _ratio(record, sit, "temporary_bytes")]
            lines.append(_row(cells))
        lines.append("")
    return "\n".join(lines)


def crossing(records: Sequence[Record], model: str, field: str, operation: str) -> float | None:
    """The number of tokens from which on `model` needs less of `field` than a transformer, between two measured ones.

    Each with its best setting of remat, and of the transformers the better one. By straight lines through the
    logarithms; None where the one or the other always needs less.
    """

    def least(models: Sequence[str]) -> dict[int, float]:
        found: dict[int, float] = {}
        for record in records:
            if record["model"] in models and record["operation"] == operation and record.get(field):
                found[record["tokens"]] = min(float(record[field]), found.get(record["tokens"], math.inf))
        return found

    own, others = least([model]), least(TRANSFORMERS)
    points = [(math.log(n), math.log(own[n] / others[n])) for n in sorted(own.keys() & others.keys())]
    for (x, above), (x2, below) in itertools.pairwise(points):
        if above > 0 >= below:
            return math.exp(x + (x2 - x) * above / (above - below))
    return None


def save_figure(records: Sequence[Record], path: AnyPath, title: str) -> None:
    """Time (left) and memory (right) over tokens, a line a model, a row an operation; both axes logarithmic.

    Of several settings of remat the fastest, or the leanest, is taken at each point. A vertical line is where the
    first model crosses the transformers.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatter, NullLocator
    except ImportError as error:
        raise MissingPackageError("the figure needs matplotlib: the extra 'plot'") from error
    good = [record for record in records if "error" not in record]
    timed = any("seconds" in record for record in good)
    fields = [("seconds", "seconds", 1), ("peak_bytes", "peak memory, MiB", 2**20)]
    if not timed:
        fields = [("flops", "GFLOP", 1e9), ("temporary_bytes", "temporary memory, MiB", 2**20)]
    operations = list(dict.fromkeys(record["operation"] for record in good))
    figure = Figure(figsize=(10, 3.6 * len(operations)), layout="constrained")
    axes = figure.subplots(len(operations), 2, squeeze=False)
    models = list(dict.fromkeys(record["model"] for record in good))
    for row, operation in zip(axes, operations, strict=True):
        for ax, (field, label, unit) in zip(row, fields, strict=True):
            for i, model in enumerate(models):
                of_model = [r for r in good if (r["model"], r["operation"]) == (model, operation) and r.get(field)]
                tokens = sorted({record["tokens"] for record in of_model})
                best = [min(r[field] for r in of_model if r["tokens"] == n) / unit for n in tokens]
                style = "--" if "sit" in model else "-"
                ax.plot(tokens, best, style, marker="o", markersize=3, color=f"C{i}", label=model)
            if models and (tokens := crossing(good, models[0], field, operation)):
                ax.axvline(tokens, color="0.7", linewidth=1)
                ax.annotate(f"{tokens:,.0f} tokens", (tokens, 0.02), xycoords=("data", "axes fraction"), fontsize=8)
            ax.set(xscale="log", yscale="log", xlabel="tokens of a sample", ylabel=label, title=operation)
            tokens = sorted({record["tokens"] for record in good})
            ax.set_xticks(tokens, [f"{n:,}" for n in tokens])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(LogFormatter())
            ax.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
            ax.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    with open_atomically(path) as file:
        figure.savefig(file, dpi=150, format="png")


def _of_sit(rows: Sequence[Record], record: Record) -> Record | None:
    same = ("tokens", "batch", "size", "dtype")
    found = [r for r in rows if r["model"] == "sit" and "error" not in r and all(r[k] == record[k] for k in same)]
    return next((r for r in found if r["remat"] == record["remat"]), found[0] if found else None)


def _ratio(record: Record, sit: Record | None, field: str) -> str:
    return "" if sit is None or record is sit or not sit.get(field) else f"{record[field] / sit[field]:.2f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

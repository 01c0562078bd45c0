"""Table and figure of an ablation, from the records of its runs."""

import importlib.util
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zigma_jax.ablation.config import SCANS
from zigma_jax.errors import ConfigError, MissingPackageError
from zigma_jax.files import write_atomically

if TYPE_CHECKING:
    import matplotlib.figure

Record = dict[str, Any]


def record_path(workdir: Path, scan: str, seed: int) -> Path:
    """Where the record of a run lies."""
    return workdir / "records" / f"{run_name(scan, seed)}.json"


def run_name(scan: str, seed: int) -> str:
    """The name of a run's files."""
    return f"{re.sub(r'[^\w.=-]', '_', scan)}-{seed}"


def check_records(workdir: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError, naming the fields, for a record made with other settings (`Experiment.settings`)."""
    here = json.loads(json.dumps(settings))
    for path in sorted((workdir / "records").glob("*.json")):
        there = json.loads(path.read_text())["settings"]
        fields = {f"{section}.{field}" for table in (here, there) for section in table for field in table[section]}
        changed = sorted(name for name in fields if _field(here, name) != _field(there, name))
        lines = [f"  {name}: {_field(there, name)!r} there, {_field(here, name)!r} now" for name in changed]
        if lines:
            raise ConfigError(
                "\n".join([f"{path} was made with another configuration; choose another workdir:", *lines])
            )


def write_report(workdir: Path) -> str:
    """Writes table.md and curves.png of the records in `workdir`, and returns the table.

    Raises:
        ValueError: no records, or records that cannot be compared.
    """
    records = sorted(
        (json.loads(path.read_text()) for path in (workdir / "records").glob("*.json")),
        key=lambda record: (_rank(record["scan"]), record["seed"]),
    )
    if not records:
        raise ConfigError(f"{workdir} has no records of an ablation yet")
    for field in ("settings", "data", "distance"):
        if any(record[field] != records[0][field] for record in records):
            raise ConfigError(f"the records in {workdir} are not of one experiment: {field} differ")
    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(record["scan"], []).append(record)
    reference = json.loads((workdir / "reference.json").read_text())
    table = make_table(runs, reference["real_distance"])
    write_atomically(workdir / "table.md", table.encode())
    make_figure(runs, reference["real_distance"]).savefig(workdir / "curves.png", dpi=150)
    return table


def make_table(runs: dict[str, list[Record]], real_distance: float) -> str:
    """Markdown: a row a backbone, mean ± standard deviation over its seeds at the last step."""
    first = next(iter(runs))
    base = {record["seed"]: record["curve"][-1] for record in runs[first]}
    name = runs[first][0]["distance"]
    rows = [
        (
            "backbone",
            "parameters",
            "steps",
            "ms a step",
            "seeds",
            "held-out loss",
            less := f"less {first}'s",
            name,
            less,
        ),
        ("---",) + ("--:",) * 8,
    ]
    for scan, records in runs.items():
        last = {record["seed"]: record["curve"][-1] for record in records}
        steps = records[0]["curve"][-1]["step"]
        cells = [scan, f"{records[0]['parameters']:,}", f"{steps:,}"]
        cells += [f"{min(r['seconds']['training'] for r in records) / steps * 1e3:.3g}", str(len(records))]
        for field, digits in (("loss", 5), ("distance", 3)):
            paired = [last[seed][field] - base[seed][field] for seed in last if seed in base]
            cells += [_spread([point[field] for point in last.values()], digits)]
            cells += ["" if scan == first or not paired else _spread(paired, digits, sign="+")]
        rows.append(tuple(cells))
    record = runs[first][0]
    about = record["data"]
    notes = [
        f"{_EQUAL[_equal(record)]}, of {record['settings']['train']['batch_size']} samples a step; mean ± standard "
        "deviation over seeds; differences are taken seed by seed; ms a step is the fastest run's. Averaged weights.",
        f"{name}: {record['distance_means']}, of {record['settings']['ablation']['samples']:,} samples against "
        f"{about['set']}'s {about['held_out']}; as many of the training pictures have {real_distance:.3f}.",
        f"{_joined(records, lambda r: r['device'])}; "
        f"{_joined(records, lambda r: ', '.join(f'{k} {v}' for k, v in r['versions'].items()))}.",
    ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return table + "\n\n" + "\n".join(notes) + "\n"


_EQUAL = {"steps": "After as many steps each", "time": "After as much time in training each"}


def _equal(record: Record) -> str:
    return record["settings"]["ablation"].get("equal", "steps")


def make_figure(runs: dict[str, list[Record]], real_distance: float) -> "matplotlib.figure.Figure":
    """Held-out loss (above) and distance (below): curves over the steps, or the time, and every seed's last value.

    A line is the mean over seeds, its shade reaches from the lowest to the highest; a dot is a seed, a bar their mean.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, width_ratios=(1.4, 1), squeeze=False)
    name = next(iter(runs.values()))[0]["distance"]
    colours = dict(zip(runs, colormaps["tab10"].colors * len(runs), strict=False))  # pyright: ignore
    over, xlabel = (
        ("seconds", "seconds of training") if _equal(next(iter(runs.values()))[0]) == "time" else ("step",) * 2
    )
    for (curves, ends), field, label in zip(axes, ("loss", "distance"), ("held-out loss", name), strict=True):
        for i, (scan, records) in enumerate(runs.items()):
            steps, values = curve_of(records, field, over)
            curves.plot(steps, values.mean(0), ".-", color=colours[scan], label=scan)
            curves.fill_between(steps, values.min(0), values.max(0), color=colours[scan], alpha=0.2, linewidth=0)
            ends.plot([i] * len(values), values[:, -1], "o", color=colours[scan], alpha=0.6)
            ends.plot([i - 0.25, i + 0.25], [values[:, -1].mean()] * 2, "-", color=colours[scan], linewidth=2)
        curves.set(xlabel=xlabel, ylabel=label, yscale="log")
        ends.set(ylabel=f"{label}, last step")
        ends.set_xticks(range(len(runs)), list(runs), rotation=30)
    axes[1, 0].axhline(real_distance, color="0.5", linestyle=":", label="training pictures")
    axes[0, 0].legend(fontsize=8, ncols=2)
    axes[1, 0].legend(fontsize=8, ncols=2)
    return figure


def require_matplotlib() -> None:
    """Raises ImportError, with what to do, if there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingPackageError("the figure needs matplotlib: pip install zigma_jax[plot]")


def curve_of(records: Sequence[Record], field: str, over: str = "step") -> tuple[np.ndarray, np.ndarray]:
    """Steps (p,) at which `field` was measured, or the seconds in training until then, and its values (seeds, p)."""
    points = [
        [{**point, "seconds": seconds} for point, seconds in _timed(record) if field in point] for record in records
    ]
    where = np.mean([[point[over] for point in curve] for curve in points], axis=0)
    return where, np.array([[point[field] for point in curve] for curve in points])


def _timed(record: Record) -> Iterator[tuple[Record, float | None]]:
    """Each point of the curve, and the seconds in training until then, which older records lack."""
    yield from itertools.zip_longest(record["curve"], record["seconds"].get("at", ()))


def _rank(scan: str) -> tuple[int, str]:
    """The order of rows and colours: that of SCANS, then by name, whenever the runs were made."""
    return (SCANS.index(scan) if scan in SCANS else len(SCANS), scan)


def _spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Mean ± standard deviation of a sample; the mean alone of one value."""
    mean = f"{np.mean(values):{sign}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _joined(records: Sequence[Record], text: Callable[[Record], str]) -> str:
    return " and ".join(sorted({text(record) for record in records}))


def _field(settings: dict[str, Any], name: str) -> Any:
    section, field = name.split(".")
    return settings.get(section, {}).get(field)

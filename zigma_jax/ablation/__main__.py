"""The paper's ablation, small: `python -m zigma_jax.ablation [--config=configs/ablation.py] [--config.x.y=…]`.

Trains the same model along different scan orders, each with several seeds, and compares held-out loss and the Fréchet
distance of samples. The same command again goes on with the runs that are missing. What it leaves in its workdir:

    records/SCAN-SEED.json   one run: curves, times, parameters, configuration, device, versions
    samples/SCAN-SEED.png    the first pictures of its last distance; of clips .webp
    pictures.npz             the data set as the runs see it; a machine that has this file needs no data set
    step_seconds.json        of ablation.equal = "time": how long a step of each takes
    reference.json           the distance that perfect samples would have
    table.md, curves.png     the comparison; `--report` makes them of the runs there are, and trains nothing

Exit codes: 0 done; 1 an error, named on the last line; 130 interrupted: the run under way is lost, no other.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
from absl import app, flags
from jaxtyping import UInt8
from tqdm import tqdm

from zigma_jax.ablation.config import Experiment, parse_experiment
from zigma_jax.ablation.pictures import load_pictures
from zigma_jax.ablation.report import check_records, record_path, require_matplotlib, run_name, write_report
from zigma_jax.ablation.run import Runner
from zigma_jax.files import check_local, write_atomically
from zigma_jax.programs import DEFINE_config, exit_with_errors, parse_flags, set_cpu_devices
from zigma_jax.training.config import require
from zigma_jax.training.preview import make_grid, save_animation, save_png
from zigma_jax.training.sharding import check_batch, make_mesh

INTERRUPTED = 130  # 128 + SIGINT
_PREVIEW = 36  # samples in a grid


def ablate(experiment: Experiment, workdir: Path) -> str:
    """Makes the runs that `workdir` lacks, then the report; returns its table.

    Raises:
        ImportError: there is no matplotlib.
        ValueError: the workdir's records or pictures belong to another configuration, or a field breaks its rule.
    """
    ablation, base = experiment.ablation, experiment.base
    require_matplotlib()  # now, not after the last run
    mesh = make_mesh()
    check_batch(base.train.batch_size, base.train.accumulate, mesh)
    require(
        ablation.batch % mesh.size == 0, "ablation.batch", ablation.batch, f"must be divisible by {mesh.size} devices"
    )

    check_records(workdir, experiment.settings())
    missing = [
        (scan, seed)
        for seed, scan in itertools.product(ablation.seeds, ablation.scans)  # one seed of every order comes first
        if not record_path(workdir, scan, seed).exists()
    ]
    pictures = load_pictures(base.data, ablation.held_out, workdir / "pictures.npz")
    runner = Runner(experiment, pictures, mesh, workdir)
    reference = {"real_distance": runner.real_distance}
    write_atomically(workdir / "reference.json", json.dumps(reference).encode())
    interval = 0.1 if sys.stderr.isatty() else 30  # seconds: a log file wants few lines
    total = sum(runner.steps(scan) for scan, _ in missing)
    with tqdm(total=total, unit="step", dynamic_ncols=True, mininterval=interval) as bar:
        for number, (scan, seed) in enumerate(missing, start=1):
            bar.set_description(f"{scan}, seed {seed} (run {number} of {len(missing)})")

            def advance(steps: int, loss: float | None) -> None:
                bar.update(steps)
                if loss is not None:
                    bar.set_postfix({"held-out loss": f"{loss:.4f}"})

            record, samples = runner.run(scan, seed, advance)
            save_samples(workdir / "samples" / run_name(scan, seed), samples[:_PREVIEW])
            write_atomically(record_path(workdir, scan, seed), json.dumps(record, indent=1).encode())
    return write_report(workdir)


def save_samples(path: Path, samples: UInt8[np.ndarray, "n *size 3"]) -> None:
    """Pictures as a grid, .png; clips as a grid that plays, .webp."""
    if samples.ndim == 5:
        save_animation(f"{path}.webp", samples)
    else:
        save_png(f"{path}.png", make_grid(samples))


def main(argv: list[str]) -> None:
    with exit_with_errors(argv):
        check_local(_WORKDIR.value, "workdir")
        workdir = Path(_WORKDIR.value)
        if _REPORT.value:
            table = write_report(workdir)
        else:
            experiment = parse_experiment(_CONFIG.value)
            set_cpu_devices(experiment.base.train.cpu_devices)
            try:
                table = ablate(experiment, workdir)
            except KeyboardInterrupt:
                print(f"interrupted: the same command goes on with the runs that {workdir} lacks", file=sys.stderr)
                sys.exit(INTERRUPTED)
    print(f"\n{table}\n{workdir}/table.md, {workdir}/curves.png")


if __name__ == "__main__":
    _CONFIG = DEFINE_config("configs/ablation.py")
    _WORKDIR = flags.DEFINE_string("workdir", "runs/ablation", "Where records, table and figure lie.")
    _REPORT = flags.DEFINE_bool("report", False, "Only make table and figure from the records there are.")
    app.run(main, flags_parser=parse_flags)

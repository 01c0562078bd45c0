"""The notebooks run from top to bottom, at the smallest size; what they show is the output of one such run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
LARGEST = 300_000  # bytes: GitHub draws notebooks of that size, and clones carry them for ever

# In place of what the cell tagged "parameters" sets.
SMALLEST = {
    "orders": {"b": 1, "d": 16},
    "text": {
        "WORKDIR": "runs/none",
        "DATA": "avatars/tiny",
        "SPLIT": "train",
        "WIDTH": 16,
        "DEPTH": 2,
        "STEPS": 4,
        "BATCH": 8,
        "PIXELS": 8,
    },
    "train_and_sample": {"DATA": "avatars/tiny", "WIDTH": 16, "DEPTH": 2, "STEPS": 5, "BATCH": 8},
}


def read(name):
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())


def as_program(notebook, parameters):
    """The code cells one after the other. Lines for IPython alone (% and !) are left out: they install on Colab."""
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cells.append(re.sub(r"^( *)[%!].*$", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE))
            if "parameters" in cell["metadata"].get("tags", []):
                cells += [f"{name} = {value!r}" for name, value in parameters.items()]
    return "\n\n".join(cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_from_top_to_bottom(name, tmp_path):
    program = as_program(read(name), SMALLEST.get(name, {}))
    where = tmp_path / "notebooks"  # beside which a clone has tests/
    where.mkdir()
    (tmp_path / "tests").symlink_to(NOTEBOOKS.parent / "tests")
    root = NOTEBOOKS.parent
    environment = os.environ | {
        "PYTHONPATH": f"{root}:{root / 'kernels'}",
        "XLA_FLAGS": re.sub(r"--\S*device_count=8", "", os.environ["XLA_FLAGS"]),  # how many devices, the notebook says
        "MPLBACKEND": "agg",
        "TFDS_DATA_DIR": str(tmp_path / "data"),
    }
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_shows_one_whole_run(name):
    """Every cell was executed, in order, without errors or warnings."""
    cells = [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for output in (output for cell in cells for output in cell["outputs"]):
        assert output["output_type"] in ("stream", "display_data", "execute_result"), output
        assert output.get("name") != "stderr", output["text"]
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < LARGEST


def test_all_begin_alike():
    """The cell that installs the project on Colab."""
    first = [next(cell["source"] for cell in read(name)["cells"] if cell["cell_type"] == "code") for name in NAMES]
    assert all(source == first[0] for source in first)

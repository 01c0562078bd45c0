"""What importing the packages costs, and which way their imports run."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_importing_the_model_loads_no_training_program():
    heavy = ["tensorflow_datasets", "tensorflow", "grain", "ml_collections", "torch", "triton", "diffrax", "matplotlib"]
    program = f"import sys, zigma_jax, zigma_jax.interop; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_imports_run_one_way():
    """Programs → training → {models, interpolant, data, metrics} → networks → interop → zigma_kernels."""
    everywhere = {"errors", "files"}
    allowed = {
        "models": {"models"},
        "interpolant": {"interpolant"},
        "interop": {"interop", "models"},
        "networks": {"networks", "interop"},
        "metrics": {"metrics", "networks", "interop"},
        "data": {"data", "networks"},
    }
    for room, others in allowed.items():
        for path in (ROOT / "zigma_jax" / room).rglob("*.py"):
            for name in _imports(path):
                if name.startswith("zigma_jax."):
                    assert name.split(".")[1] in others | everywhere, f"{path} imports {name}"
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not [name for name in _imports(path) if name.split(".")[0] in ("zigma_jax", "flax")], path


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module

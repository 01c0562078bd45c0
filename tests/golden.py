"""The files in tests/goldens, as our arrays."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

GOLDENS = Path(__file__).parent / "goldens"
CHECKPOINTS = sorted(path.stem for path in GOLDENS.glob("*.pt") if path.with_suffix(".npz").exists())


def load_golden(name: str) -> dict[str, np.ndarray]:
    """What the official code computed: samples channels last, labels int32, everything else as stored."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        golden = dict(file)
    for key in golden:
        if key in ("x0", "x1", "xt", "out") or key.startswith("sample_"):
            golden[key] = np.moveaxis(golden[key], -3, -1)
    if "y" in golden and golden["y"].ndim == 1:
        golden["y"] = golden["y"].astype(np.int32)
    return golden


def condition(golden):
    return jnp.asarray(golden["y"]) if "y" in golden else None

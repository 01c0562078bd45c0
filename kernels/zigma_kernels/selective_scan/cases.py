"""The calls that tests check and the bench times."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zigma_kernels.grid_path import GridPath


@dataclass(frozen=True)
class Case:
    """One call of `selective_scan`.

    Attributes:
        name: how tests and tables call it.
        batch, length, channels, states: b, L, d and n.
        dtype: of everything but A, D, dt_bias and the state.
        order: a visiting order, None for raster.
        delta: the range of step sizes, drawn log-uniformly.
        gate: whether z is given.
        skip: whether D and dt_bias are given.
        initial_state: whether a state is given.
        bench: whether it is for timing alone: too large for a fast test.
    """

    name: str
    batch: int
    length: int
    channels: int
    states: int = 16
    dtype: str = "float32"
    order: GridPath | None = None
    delta: tuple[float, float] = (1e-3, 0.1)
    gate: bool = True
    skip: bool = True
    initial_state: bool = False
    bench: bool = False

    @property
    def elements(self) -> int:
        """Of the input."""
        return self.batch * self.length * self.channels

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the array arguments, by name."""
        b, L, d, n = self.batch, self.length, self.channels, self.states
        rows, states, small = jnp.dtype(self.dtype), (b, L, n), jnp.dtype("float32")
        shapes = {"u": ((b, L, d), rows), "dt": ((b, L, d), rows), "A": ((d, n), small)}
        shapes |= {"B": (states, rows), "C": (states, rows)}
        if self.skip:
            shapes |= {"D": ((d,), small), "dt_bias": ((d,), small)}
        if self.gate:
            shapes["z"] = (b, L, d), rows
        if self.initial_state:
            segments = self.order.segments if self.order else 1
            shapes["initial_state"] = (b, d, n) if segments == 1 else (b, segments, d, n), small
        return {name: jax.ShapeDtypeStruct(*each) for name, each in shapes.items()}

    def arguments(self, dtype: str | None = None) -> dict[str, np.ndarray]:
        """The array arguments by name, always the same; in `dtype`, all of them, if one is given."""
        rng = np.random.default_rng(0)
        args = {name: rng.standard_normal(x.shape) for name, x in self.shapes.items()}
        args["A"] = -np.exp(rng.uniform(np.log(0.5), np.log(16), args["A"].shape))
        low, high = np.log(self.delta)
        delta = np.exp(rng.uniform(low, high, args["dt"].shape))
        args["dt"] = delta + np.log(-np.expm1(-delta)) - args.get("dt_bias", 0)  # softplus, inverted
        return {name: x.astype(dtype or self.shapes[name].dtype) for name, x in args.items()}

    @property
    def options(self) -> dict[str, Any]:
        """The other arguments by name."""
        return {"order": self.order}


_TESTED = (
    Case("plain", 2, 33, 5, 3, gate=False, skip=False),
    Case("bfloat16", 2, 48, 8, 16, dtype="bfloat16", initial_state=True),
    Case("steps from 1e-6 to 50", 2, 70, 6, 4, delta=(1e-6, 50.0), initial_state=True),
    Case("long memory", 1, 4097, 2, 2, delta=(1e-6, 1e-4), initial_state=True),
    Case("reversed", 2, 35, 4, 3, order=GridPath.raster((5, 7), flip=(True, True))),
    Case("zigzag by columns", 2, 35, 4, 3, order=GridPath.zigzag((5, 7), (1, 0)), initial_state=True),
    Case("frames of a video", 2, 60, 3, 2, order=GridPath.zigzag((3, 4, 5), (1, 2)), initial_state=True),
    Case("time in a video", 1, 60, 3, 2, order=GridPath.raster((20, 1, 3), (0,)), initial_state=True),
)
_TIMED = (
    Case("long", 2, 4096, 1536, bench=True),
    Case("small images", 64, 64, 384, bench=True),
    Case("small images, zigzag", 64, 64, 384, order=GridPath.zigzag((8, 8), (1, 0)), bench=True),
    Case("small images, bfloat16", 64, 64, 384, dtype="bfloat16", bench=True),
    Case("one image", 1, 1024, 1536, dtype="bfloat16", bench=True),
    Case("one large image", 1, 4096, 1536, dtype="bfloat16", bench=True),
    Case("one large image, zigzag", 1, 4096, 1536, dtype="bfloat16", order=GridPath.zigzag((64, 64)), bench=True),
    Case("256 tokens", 64, 256, 1536, dtype="bfloat16", bench=True),
    Case("256 tokens, zigzag", 64, 256, 1536, dtype="bfloat16", order=GridPath.zigzag((16, 16)), bench=True),
    Case("1024 tokens", 32, 1024, 1536, dtype="bfloat16", bench=True),
    *(
        Case(f"1024 tokens, {name}", 32, 1024, 1536, dtype="bfloat16", order=order, bench=True)
        for name, order in (
            ("reversed", GridPath.raster((32, 32), flip=(True, True))),
            ("by columns", GridPath.raster((32, 32), (1, 0))),
            ("zigzag", GridPath.zigzag((32, 32))),
            ("zigzag by columns", GridPath.zigzag((32, 32), (1, 0))),
            ("Hilbert", GridPath.hilbert((32, 32))),
            ("random", GridPath.random((32, 32), seed=0)),
        )
    ),
    Case("4096 tokens", 8, 4096, 1536, dtype="bfloat16", bench=True),
    Case("4096 tokens, zigzag", 8, 4096, 1536, dtype="bfloat16", order=GridPath.zigzag((64, 64)), bench=True),
    Case("16384 tokens", 2, 16384, 1536, dtype="bfloat16", bench=True),
    Case("16384 tokens, zigzag", 2, 16384, 1536, dtype="bfloat16", order=GridPath.zigzag((128, 128)), bench=True),
)
CASES: dict[str, Case] = {case.name: case for case in _TESTED + _TIMED}

# What an implementation is checked on where it has not been verified: short, and of every path through a kernel.
FIRST_USE = (
    CASES["bfloat16"],
    CASES["frames of a video"],
    Case("several blocks", 1, 150, 384, order=GridPath.zigzag((10, 15), (1, 0)), initial_state=True),
)

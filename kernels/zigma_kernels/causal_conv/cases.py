"""The calls that tests check and the bench times."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from zigma_kernels.grid_path import GridPath


@dataclass(frozen=True)
class Case:
    """One call of `causal_conv`: sizes b, L, d and width, dtype of x, visiting order, and what else is given.

    `bench` marks a case for timing alone: too large for a fast test.
    """

    name: str
    batch: int
    length: int
    channels: int
    width: int = 4
    dtype: str = "float32"
    order: GridPath | None = None
    bias: bool = True
    activation: Literal["silu"] | None = "silu"
    initial_state: bool = False
    bench: bool = False

    @property
    def elements(self) -> int:
        """Of the input."""
        return self.batch * self.length * self.channels

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the array arguments, by name."""
        b, d, past = self.batch, self.channels, self.width - 1
        x, small = jnp.dtype(self.dtype), jnp.dtype("float32")
        shapes = {"x": ((b, self.length, d), x), "weight": ((self.width, d), small)}
        if self.bias:
            shapes["bias"] = (d,), small
        if self.initial_state:
            segments = self.order.segments if self.order else 1
            shapes["initial_state"] = (b, past, d) if segments == 1 else (b, segments, past, d), x
        return {name: jax.ShapeDtypeStruct(*each) for name, each in shapes.items()}

    def arguments(self, dtype: str | None = None) -> dict[str, np.ndarray]:
        """The array arguments by name, always the same; in `dtype`, all of them, if one is given."""
        normal = np.random.default_rng(0).standard_normal
        return {name: normal(x.shape).astype(dtype or x.dtype) for name, x in self.shapes.items()}

    @property
    def options(self) -> dict[str, Any]:
        """The other arguments by name."""
        return {"order": self.order, "activation": self.activation}


_TESTED = (
    Case("width 4", 2, 21, 5, initial_state=True),
    Case("width 2, linear", 2, 9, 5, 2, bias=False, activation=None),
    Case("shorter than its window", 1, 2, 3, initial_state=True),
    Case("bfloat16", 2, 32, 8, dtype="bfloat16", initial_state=True),
    Case("reversed", 2, 12, 3, 3, order=GridPath.raster((3, 4), flip=(True, True))),
    Case("zigzag by columns", 2, 12, 3, order=GridPath.zigzag((3, 4), (1, 0)), initial_state=True),
    Case("frames of a video", 2, 24, 3, order=GridPath.zigzag((2, 3, 4), (1, 2)), initial_state=True),
    Case("several tiles", 1, 40, 384, order=GridPath.zigzag((5, 8), flip=(False, True)), initial_state=True),
    Case("time in a video", 1, 24, 3, order=GridPath.raster((2, 3, 4), (0,)), initial_state=True),
)
_TIMED = (
    Case("long", 2, 4096, 1536, bench=True),
    Case("small images", 64, 64, 384, bench=True),
    Case("small images, zigzag", 64, 64, 384, order=GridPath.zigzag((8, 8), (1, 0)), bench=True),
    Case("1024 tokens", 32, 1024, 1536, dtype="bfloat16", bench=True),
    Case("1024 tokens, zigzag", 32, 1024, 1536, dtype="bfloat16", order=GridPath.zigzag((32, 32)), bench=True),
    Case("1024 tokens, Hilbert", 32, 1024, 1536, dtype="bfloat16", order=GridPath.hilbert((32, 32)), bench=True),
    Case("one large image", 1, 4096, 1536, dtype="bfloat16", bench=True),
    Case("256 tokens", 64, 256, 1536, dtype="bfloat16", bench=True),
    Case("4096 tokens", 8, 4096, 1536, dtype="bfloat16", bench=True),
    Case("16384 tokens", 2, 16384, 1536, dtype="bfloat16", bench=True),
)
CASES: dict[str, Case] = {case.name: case for case in _TESTED + _TIMED}

# What an implementation is checked on where it has not been verified: short, and of every path through a kernel.
FIRST_USE = tuple(CASES[name] for name in ("bfloat16", "frames of a video", "several tiles"))

"""GridPath: a visiting order over a grid of tokens, structured where it has structure."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Int32

from zigma_kernels.hilbert import hilbert_order

Ints = tuple[int, ...]
Bools = tuple[bool, ...]
KINDS = ("raster", "zigzag", "hilbert", "official_hilbert", "random")


@dataclass(frozen=True)
class GridPath:
    """The order in which a scan visits the tokens of a grid. Frozen, hashable: a static argument of jit.

    Tokens are numbered in raster order (C order, the last axis of `grid` fastest). The path visits the axes
    in `axes`; every position on the other axes is a segment of its own, where a scan's state and a
    convolution's window start afresh. Segments follow one another in raster order of those positions.

    Attributes:
        grid: sides of the token grid, (H, W) for an image, (F, H, W) for a video.
        kind: the order inside a segment, on the sub-grid whose axes are `axes`, in that order.
            ``"raster"``: nested loops, the last of `axes` innermost.
            ``"zigzag"``: the same loops, an axis turning round after each pass along it (boustrophedon);
            every step moves to a neighbour, on any shape.
            ``"hilbert"``: generalised Hilbert path over two axes, its ends apart along ``axes[0]``; every
            step moves to a neighbour, on any rectangle (`hilbert_order` says where it ends).
            ``"official_hilbert"``: what the original code calls ``hilbertN``, squares only: the map from
            position to rank taken for an order, that is the inverse of ``"hilbert"``. Not continuous.
            ``"random"``: a permutation drawn from `seed`, the same on every NumPy version.
        axes: the visited axes, slowest first: rows first is (0, 1), columns first (1, 0). () stands for all.
        flip: for each of `axes`, whether the path starts at its far end. () stands for none.
        seed: in [0, 2**32), for ``"random"`` alone.
        backward: visit each segment from its end, for kinds whose reversal flips no axes (see `reversed`).

    Raises ValueError naming the field and the rule for anything that is no such path.
    """

    grid: Ints
    kind: str = "raster"
    axes: Ints = ()
    flip: Bools = ()
    seed: int = 0
    backward: bool = False

    def __post_init__(self):
        for field in ("grid", "axes", "flip"):
            self._require(isinstance(getattr(self, field), tuple), field, "it is a tuple")
        sides_ok = self.grid and all(isinstance(side, int) and side > 0 for side in self.grid)
        self._require(sides_ok, "grid", "a grid has one or more sides, each a positive int")
        every = tuple(range(len(self.grid)))
        object.__setattr__(self, "axes", self.axes or every)
        object.__setattr__(self, "flip", self.flip or (False,) * len(self.axes))

        axes_ok = len(set(self.axes)) == len(self.axes) and set(self.axes) <= set(every)
        self._require(axes_ok, "axes", f"axes of grid={self.grid} are distinct and among {every}")
        self._require(len(self.flip) == len(self.axes), "flip", f"it has one entry for each of axes={self.axes}")
        self._require(self.kind in KINDS, "kind", f"the kinds are {', '.join(KINDS)}")
        if self.kind in ("hilbert", "official_hilbert"):
            self._require(len(self.axes) == 2, "axes", f"a {self.kind} path visits exactly two")
        if self.kind == "official_hilbert":
            self._require(self.shape[0] == self.shape[1], "grid", f"{self.kind} knows squares only (hilbert: any)")
        self._require(0 <= self.seed < 2**32, "seed", "a seed is in [0, 2**32)")
        self._require(self.seed == 0 or self.kind == "random", "seed", f"kind={self.kind!r} takes none")
        flips = self.kind in ("raster", "zigzag")
        self._require(not (self.backward and flips), "backward", f"a {self.kind} path is reversed by flipping axes")

    def _require(self, holds: object, field: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"GridPath: {field}={getattr(self, field)!r}, but {rule}")

    @classmethod
    def raster(cls, grid: Ints, axes: Ints = (), flip: Bools = ()) -> "GridPath":
        """Nested loops over `axes`; by default all tokens in the order in which they lie in memory."""
        return cls(grid, "raster", axes, flip)

    @classmethod
    def zigzag(cls, grid: Ints, axes: Ints = (), flip: Bools = ()) -> "GridPath":
        """Boustrophedon over `axes`."""
        return cls(grid, "zigzag", axes, flip)

    @classmethod
    def hilbert(cls, grid: Ints, axes: Ints = (), flip: Bools = ()) -> "GridPath":
        """Generalised Hilbert path over two axes."""
        return cls(grid, "hilbert", axes, flip)

    @classmethod
    def random(cls, grid: Ints, seed: int, axes: Ints = ()) -> "GridPath":
        """A permutation drawn from `seed`, the same in every segment."""
        return cls(grid, "random", axes, seed=seed)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sides of the visited axes, slowest first."""
        return tuple(self.grid[axis] for axis in self.axes)

    @property
    def length(self) -> int:
        """Number of tokens, L."""
        return math.prod(self.grid)

    @property
    def segments(self) -> int:
        """Number of independent sequences; `permutation` lists one after the other."""
        return self.length // self.segment_length

    @property
    def segment_length(self) -> int:
        """Number of tokens in each segment."""
        return math.prod(self.shape)

    @property
    def permutation(self) -> Int32[np.ndarray, " L"]:
        """Raster index of the token visited i-th: int32 (L,), read-only."""
        return _tables(self)[0]

    @property
    def inverse(self) -> Int32[np.ndarray, " L"]:
        """Rank at which each token, in raster order, is visited: int32 (L,), read-only."""
        return _tables(self)[1]

    @property
    def is_raster(self) -> bool:
        """Whether this is one scan over the tokens as they lie in memory."""
        return self.segments == 1 and bool((self.permutation == np.arange(self.length)).all())

    @property
    def jumps(self) -> int:
        """Number of steps inside segments that do not move to a neighbour (one axis, by one)."""
        tokens = self.permutation.reshape(self.segments, -1)
        moves = np.abs(np.diff(np.unravel_index(tokens, self.grid), axis=-1)).sum(axis=0)
        return int((moves != 1).sum())

    @property
    def is_continuous(self) -> bool:
        """Whether each step inside a segment moves to one of the 4 neighbours (6 in a volume)."""
        return self.jumps == 0

    def reversed(self) -> "GridPath":
        """The path that visits each segment in the opposite order."""
        if self.kind == "raster":
            return replace(self, flip=tuple(not start for start in self.flip))
        if self.kind == "zigzag":  # an axis ends where it started after an even number of passes along it
            passes = [math.prod(self.shape[:i]) for i in range(len(self.axes))]
            return replace(self, flip=tuple(far ^ (n % 2 == 1) for far, n in zip(self.flip, passes, strict=True)))
        return replace(self, backward=not self.backward)


def zigzag_paths(grid: Ints) -> tuple[GridPath, ...]:
    """The eight zigzag paths of an image, in ZigMa's order; of a video's frames, each frame a segment.

    From each corner (0, 0), (0, W-1), (H-1, 0), (H-1, W-1): row by row, then column by column. On squares
    these are the paths of ``zigzag_path`` in the original's utils/utils_zigzag.py.
    """
    row, column = len(grid) - 2, len(grid) - 1
    return tuple(
        path
        for bottom, right in product((False, True), repeat=2)
        for path in (
            GridPath.zigzag(grid, (row, column), (bottom, right)),
            GridPath.zigzag(grid, (column, row), (right, bottom)),
        )
    )


@lru_cache(maxsize=512)
def _tables(path: GridPath) -> tuple[np.ndarray, np.ndarray]:
    order = _segment_order(path)
    others = tuple(axis for axis in range(len(path.grid)) if axis not in path.axes)
    tokens = np.arange(path.length, dtype=np.int32).reshape(path.grid)
    segments = tokens.transpose(others + tuple(sorted(path.axes))).reshape(path.segments, path.segment_length)
    permutation = segments[:, order].reshape(-1)
    inverse = _invert(permutation)
    permutation.flags.writeable = inverse.flags.writeable = False
    return permutation, inverse


def _segment_order(path: GridPath) -> np.ndarray:
    """The order inside a segment, as raster indices of the sub-grid that the visited axes span."""
    visited = sorted(path.axes)
    cells = np.arange(path.segment_length).reshape([path.grid[axis] for axis in visited])
    cells = cells.transpose([visited.index(axis) for axis in path.axes])
    cells = np.flip(cells, tuple(i for i, far in enumerate(path.flip) if far)).reshape(-1)
    match path.kind:
        case "raster":
            order = cells
        case "zigzag":
            order = cells[_boustrophedon(path.shape)]
        case "hilbert":
            order = cells[hilbert_order(*path.shape)]
        case "official_hilbert":
            order = _invert(cells[hilbert_order(*path.shape)])
        case _:  # RandomState, unlike Generator, is frozen: a seed means the same permutation for ever
            order = cells[np.random.RandomState(path.seed).permutation(path.segment_length)]
    return order[::-1] if path.backward else order


def _boustrophedon(shape: tuple[int, ...]) -> np.ndarray:
    """Raster indices of a grid line by line; every second pass over the inner axes runs from its end."""
    order = np.zeros(1, np.int64)
    for side in reversed(shape):
        passes = np.arange(side)[:, None] * len(order) + order
        passes[1::2] = passes[1::2, ::-1]
        order = passes.reshape(-1)
    return order


def _invert(permutation: np.ndarray) -> np.ndarray:
    inverse = np.empty(len(permutation), np.int32)
    inverse[permutation] = np.arange(len(permutation), dtype=np.int32)
    return inverse

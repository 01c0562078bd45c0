"""A Hilbert path through any rectangle, every step to a 4-neighbour."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32


def hilbert_order(rows: int, columns: int) -> Int32[np.ndarray, " L"]:
    """Raster indices, int32, of a (rows, columns) grid along a generalised Hilbert path from corner (0, 0).

    On a square of side 2ⁿ this is Hilbert's curve; elsewhere the same recursion with uneven halves (the idea
    is J. Červený's "gilbert"). On squares it is the path that ``hilbert_path`` of the original ZigMa ranks.

    Every step moves to a 4-neighbour, on every rectangle. What parity decides is where the path can end.
    Colour the cells like a chessboard: a step changes the colour, so a path through all cells from (0, 0) to
    (rows - 1, 0) exists only if rows · (columns - 1) is even; if it is odd, any visit of all cells between
    those two corners takes a diagonal step or a longer one. Rather than jump, this path then ends elsewhere:

    - rows even, or columns odd: at (rows - 1, 0), the neighbouring corner, as Hilbert's curve does;
    - rows odd and columns even: at the opposite corner, (rows - 1, columns - 1).

    A single row ends at (0, columns - 1), a single column at (rows - 1, 0).
    """
    walk = _to_opposite if rows % 2 == 1 and columns % 2 == 0 else _to_neighbour
    return np.fromiter(walk(0, columns, 1, rows, columns), np.int32, rows * columns)


# A rectangle below is its first cell (a raster index), two signed raster strides u and v at right angles, and
# its sides w along u and h along v.


def _to_neighbour(start: int, u: int, v: int, w: int, h: int) -> Iterator[int]:
    """Walk from `start` to its neighbouring corner along u; w even or h odd, or w = 1 (a line along v)."""
    if h == 1:
        yield from (start + u * i for i in range(w))
    elif w == 1:
        yield from (start + v * i for i in range(h))
    elif 2 * w > 3 * h:  # long: one piece after the other
        w1 = _even(_half(w, u))
        yield from _to_neighbour(start, u, v, w1, h)
        yield from _to_neighbour(start + u * w1, u, v, w - w1, h)
    else:  # up on the left, across the top, down on the right: with h1 even each ends where the next begins
        h1 = _even(_half(h, v)) if h > 2 else 1
        w1 = _half(w, u)
        yield from _to_neighbour(start, v, u, h1, w1)
        yield from _to_neighbour(start + v * h1, u, v, w, h - h1)
        yield from _to_neighbour(start + u * (w - 1) + v * (h1 - 1), -v, -u, h1, w - w1)


def _to_opposite(start: int, u: int, v: int, w: int, h: int) -> Iterator[int]:
    """Walk from `start` to the corner opposite; w odd and h even."""
    if w == 1:
        yield from (start + v * i for i in range(h))
    elif w > h:
        w1 = _even(_half(w, u))
        yield from _to_neighbour(start, u, v, w1, h)
        yield from _to_opposite(start + u * w1, u, v, w - w1, h)
    else:
        h1 = _even(_half(h, v))
        yield from _to_opposite(start, u, v, w, h1)
        yield from _to_neighbour(start + u * (w - 1) + v * h1, v, -u, h - h1, w)


def _half(n: int, stride: int) -> int:
    """Half of n, rounded towards the end with the greater coordinate (as the official path rounds)."""
    return n // 2 if stride > 0 else n - n // 2


def _even(n: int) -> int:
    return n + n % 2

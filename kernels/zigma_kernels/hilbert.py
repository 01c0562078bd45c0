"""A Hilbert path through any rectangle, every step to a 4-neighbour."""

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
    order: list[int] = []
    # A rectangle is its first cell (a raster index), two signed raster strides u and v at right angles, and
    # its sides w along u and h along v. It is walked to its neighbouring corner along u or, if w is odd and h
    # even, to the opposite one. It is cut into pieces such that each ends beside the start of the next.
    rectangles = [(0, columns, 1, rows, columns)]
    while rectangles:
        start, u, v, w, h = rectangles.pop()
        if h == 1 or w == 1:
            stride, n = (u, w) if h == 1 else (v, h)
            order.extend(range(start, start + stride * n, stride))
            continue
        # Halves are rounded towards greater coordinates, as in the original; even ones end where they must.
        w1 = w // 2 if u > 0 else w - w // 2
        h1 = h // 2 if v > 0 else h - h // 2
        w1_even, h1_even = w1 + w1 % 2, h1 + h1 % 2
        to_opposite = w % 2 == 1 and h % 2 == 0
        if 2 * w > (2 if to_opposite else 3) * h:  # long: one after the other
            pieces = [(start, u, v, w1_even, h), (start + u * w1_even, u, v, w - w1_even, h)]
        elif to_opposite:  # across the lower part, then up from its far side
            pieces = [(start, u, v, w, h1_even), (start + u * (w - 1) + v * h1_even, v, -u, h - h1_even, w)]
        else:  # up on the near side, across the upper part, down on the far side
            up = h1_even if h > 2 else 1
            far = start + u * (w - 1) + v * (up - 1)
            pieces = [(start, v, u, up, w1), (start + v * up, u, v, w, h - up), (far, -v, -u, up, w - w1)]
        rectangles.extend(reversed(pieces))
    return np.array(order, np.int32)

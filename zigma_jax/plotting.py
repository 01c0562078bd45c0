"""Pictures of scan orders."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from zigma_kernels.grid_path import GridPath

from zigma_jax.errors import MissingPackageError
from zigma_jax.models.orders import ScanPlan, scan_orders

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


def plot_orders(
    orders: str | ScanPlan | Sequence[GridPath],
    grid: tuple[int, ...] | None = None,
    *,
    seed: int = 0,
    figure: "matplotlib.figure.Figure | matplotlib.figure.SubFigure | None" = None,
) -> "matplotlib.figure.Figure":
    """Draw the paths of a scan order: one panel for each layer of its period, two for ``sweep2``.

    A path runs from dark to bright. A dot marks the start of every segment; a thin line is a step that does
    not move to a neighbour. A video's frames are drawn at a slant, time running to the right.

    Args:
        orders: a name for `scan_orders`, what it returns, or paths.
        grid: the token grid, (H, W) or (F, H, W); for a name only.
        seed: that of ``random<k>``.
        figure: draw into this figure or subfigure; by default a new one.

    Returns:
        The figure (a subfigure's whole), unknown to pyplot: ``plot_orders(...).savefig("orders.png")``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: an unknown order, a name without a grid, or paths with one.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("plot_orders needs matplotlib: pip install zigma_jax[plot]") from error

    if isinstance(orders, str) == (grid is None):
        raise ValueError(f"grid={grid}: a grid goes with the name of an order, and with nothing else")
    title, panels = "", []
    if isinstance(orders, str) and grid is not None:
        title = f"{orders} on {'x'.join(map(str, grid))} tokens"
        orders = scan_orders(orders, grid, seed=seed)
    if not isinstance(orders, ScanPlan):
        panels = [("", path) for path in orders if isinstance(path, GridPath)]
    else:
        plan = orders
        ways = (" forward", " backward") if plan.bidirectional else ("",)
        panels = [
            (f"layer {i}{way}", path) for i in range(plan.period) for way, path in zip(ways, plan.layer(i), strict=True)
        ]
    if not panels:
        raise ValueError("orders is empty: there is no path to draw")

    columns, panel_width = (4, 3.2) if max(len(path.grid) for _, path in panels) > 2 else (8, 1.6)  # inches
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width, height = np.ptp(_outlines(panels[0][1].grid).reshape(-1, 2), axis=0)
    if figure is None:
        panel_height = panel_width * height / width + 0.3
        figure = Figure(figsize=(panel_width * columns, panel_height * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for ax in axes:
        ax.set_axis_off()
    for ax, (label, path) in zip(axes, panels, strict=False):
        _draw(ax, path, pitch=72 * panel_width / width)
        ax.set_title(label, fontsize=8, color="0.35", pad=3)
    figure.suptitle(title, fontsize=11)
    return figure if isinstance(figure, Figure) else figure.get_figure(root=True)


def _draw(ax: "matplotlib.axes.Axes", path: GridPath, pitch: float) -> None:
    """Draw one path; `pitch` is the distance between tokens in points."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    cells = np.stack(np.unravel_index(path.permutation, path.grid), -1)
    cells = cells.reshape(path.segments, path.segment_length, len(path.grid))
    points = _project(cells, path.grid)  # (segments, tokens, xy)
    steps = np.stack([points[:, :-1], points[:, 1:]], 2)  # (segments, steps, 2 ends, xy)
    near = np.abs(np.diff(cells, axis=1)).sum(-1) == 1
    colours = colormaps["plasma"](np.linspace(0, 0.9, path.segment_length - 1))  # the palest is lost on white
    start_colour = colormaps["plasma"](0.0)
    if path.segments > path.grid[0]:  # many short segments lie close together
        pitch = pitch / 2

    for outline in _outlines(path.grid):
        ax.fill(*outline.T, facecolor="0.965", edgecolor="0.8", linewidth=0.5, zorder=0)
    for segment, is_near in zip(steps, near, strict=True):
        widths = np.where(is_near, 0.16, 0.05) * pitch
        ax.add_collection(LineCollection(list(segment), colors=colours, linewidths=widths, capstyle="round"))
        spacing = max(2, len(segment) // 6)
        for i in range(spacing // 2, len(segment), spacing):
            if is_near[i]:
                _arrow(ax, segment[i], colours[i], 0.8 * pitch)
    ax.scatter(*points[:, 0].T, s=(0.42 * pitch) ** 2, color=start_colour, zorder=3, linewidths=0)
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.autoscale_view()


def _arrow(ax: "matplotlib.axes.Axes", step: np.ndarray, colour: np.ndarray, size: float) -> None:
    tail, tip = step[0], step[0] + 0.8 * (step[1] - step[0])
    look = {
        "arrowstyle": "-|>",
        "color": colour,
        "linewidth": 0,
        "mutation_scale": size,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    ax.annotate("", xy=(tip[0], tip[1]), xytext=(tail[0], tail[1]), arrowprops=look)


def _project(cells: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Where to draw cells (..., 2 or 3) of a grid: (..., xy). Images as they are, videos in oblique view."""
    if len(grid) == 2:
        return cells[..., ::-1].astype(float)
    frame, row, column = np.moveaxis(cells, -1, 0)
    width = grid[2]
    return np.stack([(0.6 * width + 0.8) * frame + 0.6 * column, row - column / width], -1)


def _outlines(grid: tuple[int, ...]) -> np.ndarray:
    """The frame, or frames, behind a path: (frames, 4 corners, xy)."""
    bottom, right = grid[-2] - 0.5, grid[-1] - 0.5
    corners = np.array([[-0.5, -0.5], [-0.5, right], [bottom, right], [bottom, -0.5]])
    if len(grid) == 2:
        return _project(corners, grid)[None]
    return np.stack([_project(np.insert(corners, 0, frame, axis=1), grid) for frame in range(grid[0])])

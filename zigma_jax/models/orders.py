"""Scan orders by name: which path over the token grid each layer of a model scans."""

import math
import re
from dataclasses import dataclass
from itertools import product

import numpy as np
from zigma_kernels.grid_path import GridPath, zigzag_paths

from zigma_jax.errors import ConfigError

KNOWN_ORDERS = """
    zigzag1 … zigzag8             image: boustrophedon from the four corners, by rows and by columns
    hilbert1 … hilbert8           image: Hilbert path, in the eight symmetries of the grid
    official_hilbert1 … 8         square image: the orders of published hilbertN checkpoints
    sweep1, sweep2                any: raster; raster forward and backward in every layer
    random<k>, k at least 1       any: k random permutations
    zigzag3d1 … zigzag3d48        video: boustrophedon through the whole volume
    video_<letters>, e.g. _sst    video: s layers scan each frame, t layers each pixel along time"""

_MOST = {"zigzag": 8, "hilbert": 8, "official_hilbert": 8, "sweep": 2, "random": None, "zigzag3d": 48}
_IMAGE_ONLY = ("zigzag", "hilbert", "official_hilbert")
_VIDEO_ONLY = ("zigzag3d", "video")


@dataclass(frozen=True)
class ScanPlan:
    """What the layers of a model scan; hashable.

    Attributes:
        paths: the paths of one period; layer i scans ``paths[i % period]``.
        bidirectional: each layer scans with two sets of parameters, one along its path and one along the
            reversed path (Vision Mamba), and adds the two results.
    """

    paths: tuple[GridPath, ...]
    bidirectional: bool = False

    @property
    def period(self) -> int:
        """Number of layers after which the paths repeat."""
        return len(self.paths)

    def layer(self, index: int) -> tuple[GridPath, ...]:
        """The path of layer `index`, followed by the reversed path if the plan is bidirectional."""
        path = self.paths[index % self.period]
        return (path, path.reversed()) if self.bidirectional else (path,)


def scan_orders(name: str, grid: tuple[int, ...], *, seed: int = 0) -> ScanPlan:
    """The scan plan called `name` over a token grid, (H, W) of an image or (F, H, W) of a video.

    ``zigzag<k>``, k = 1 … 8: the first k zigzag paths of the original, see `zigzag_paths`.
    ``hilbert<k>``, k = 1 … 8: the generalised Hilbert path in the first k of its eight symmetries: as it is,
        transposed, and so on after each quarter turn.
    ``official_hilbert<k>``: the orders of the original's ``hilbertN<k>``, inverses of these; squares only.
    ``sweep1``: raster. ``sweep2``: raster and reversed raster in every layer; a video is one sequence.
    ``random<k>``: k permutations drawn from `seed` (at least 0); the only order that depends on it.
    ``video_<letters>``, letters s and t, both present, repeated layer by layer: an s scans each frame along
        the next of the eight zigzag paths, a t each pixel along time, forward and backward by turns.
    ``zigzag3d<k>``, k = 1 … 48: boustrophedon through the volume, from any corner, in any nesting of axes.
        Path 6q + r has the r-th nesting and starts at the corner numbered (q + r) mod 8. Corners are numbered
        in opposite pairs, nestings in pairs with the same slowest axis (time, columns, rows): a small k is
        already diverse.

    Raises:
        ValueError: no such name, k out of range, or a grid that the order is not defined on.
    """
    if len(grid) not in (2, 3) or min(grid) < 1:
        raise ConfigError(f"grid={grid!r}, but a token grid is (H, W) or (F, H, W), each at least 1")
    if seed < 0:
        raise ConfigError(f"seed={seed}, but a seed is at least 0")
    family, k, letters = _parse(name)
    if family in (_IMAGE_ONLY if len(grid) == 3 else _VIDEO_ONLY):
        wanted, given = ("(H, W)", "a video's") if len(grid) == 3 else ("(F, H, W)", "an image's")
        raise _error(name, f"it needs a grid {wanted}, but grid={grid} is {given}")
    if family == "official_hilbert" and grid[0] != grid[1]:
        raise _error(name, f"it is defined on squares only, but grid={grid} (hilbert<k> takes any)")

    if family == "sweep":
        return ScanPlan((GridPath.raster(grid),), bidirectional=k == 2)
    if family == "zigzag":
        return ScanPlan(zigzag_paths(grid)[:k])
    if family == "zigzag3d":
        return ScanPlan(_volume_zigzags(grid)[:k])
    if family == "random":
        return ScanPlan(tuple(GridPath.random(grid, _path_seed(seed, i)) for i in range(k)))
    if family == "video":
        return ScanPlan(_space_and_time(letters, grid))
    return ScanPlan(tuple(GridPath(grid, family, axes, flip) for axes, flip in _SYMMETRIES[:k]))


def _parse(name: str) -> tuple[str, int, str]:
    """The family of an order, and its k or its letters."""
    if match := re.fullmatch(r"video_([st]+)", name):
        if len(set(match[1])) == 1:
            raise _error(name, "the letters of video_<letters> include both s (space) and t (time)")
        return "video", 0, match[1]
    match = re.fullmatch(r"(zigzag3d|[a-z_]+)([0-9]+)", name)
    if not match or match[1] not in _MOST:
        raise _error(name, "there is no such order")
    family, k, most = match[1], int(match[2]), _MOST[match[1]]
    if match[2][0] == "0" or (most and k > most):
        raise _error(name, f"k of {family}<k> is " + (f"1 … {most}" if most else "at least 1"))
    return family, k, ""


def _error(name: str, rule: str) -> ConfigError:
    return ConfigError(f"scan={name!r}: {rule}. The orders are{KNOWN_ORDERS}")


# The eight symmetries of a grid as (axes, flip), in the order of the original's hilbert_path: after 0, 1, 2
# and 3 quarter turns, each followed by its transpose. A path on axes (1, 0) is one of the transposed grid.
_SYMMETRIES = (
    ((0, 1), (False, False)),
    ((1, 0), (False, False)),
    ((1, 0), (False, True)),
    ((0, 1), (False, True)),
    ((0, 1), (True, True)),
    ((1, 0), (True, True)),
    ((1, 0), (True, False)),
    ((0, 1), (True, False)),
)


def _volume_zigzags(grid: tuple[int, ...]) -> tuple[GridPath, ...]:
    nestings = ((0, 1, 2), (0, 2, 1), (2, 0, 1), (2, 1, 0), (1, 2, 0), (1, 0, 2))
    halves = [(False, *rest) for rest in product((False, True), repeat=2)]
    corners = [corner for near in halves for corner in (near, tuple(not far for far in near))]
    return tuple(
        GridPath.zigzag(grid, nesting, tuple(corners[(q + r) % 8][axis] for axis in nesting))
        for q in range(8)
        for r, nesting in enumerate(nestings)
    )


def _space_and_time(letters: str, grid: tuple[int, ...]) -> tuple[GridPath, ...]:
    """One period of a video order: until letter, zigzag path and direction of time are back together."""
    along_time = GridPath.raster(grid, (0,))
    turns = {"s": zigzag_paths(grid), "t": (along_time, along_time.reversed())}
    pattern = letters[: (letters + letters).index(letters, 1)]  # "stst" is "st" said twice
    repeats = math.lcm(*(len(paths) // math.gcd(len(paths), pattern.count(x)) for x, paths in turns.items()))
    layers = pattern * repeats
    return tuple(turns[letter][layers[:i].count(letter) % len(turns[letter])] for i, letter in enumerate(layers))


def _path_seed(seed: int, index: int) -> int:
    """A 32-bit seed of its own for path `index`; SeedSequence is the same on every NumPy version."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])

"""GridPath: permutations, inverses, segments, continuity, reversal, validation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zigma_kernels.grid_path import GridPath, zigzag_paths

GRIDS_33_20 = list(itertools.product(range(1, 34), range(1, 21)))


@st.composite
def fields(draw) -> tuple:
    """The arguments of a GridPath."""
    grid = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    axes = tuple(draw(st.permutations(range(len(grid))))[: draw(st.integers(1, len(grid)))])
    kinds = ["raster", "zigzag", "random"]
    if len(axes) == 2:
        kinds += ["hilbert"] + ["official_hilbert"] * (grid[axes[0]] == grid[axes[1]])
    kind = draw(st.sampled_from(kinds))
    flip = tuple(draw(st.lists(st.booleans(), min_size=len(axes), max_size=len(axes))))
    seed = draw(st.integers(0, 2**32 - 1)) if kind == "random" else 0
    return grid, kind, axes, flip, seed


@given(fields())
def test_a_path_visits_every_token_once_segment_by_segment(fields):
    path = GridPath(*fields)
    assert path.permutation.dtype == path.inverse.dtype == np.int32
    assert sorted(path.permutation) == list(range(path.length))
    np.testing.assert_array_equal(path.inverse[path.permutation], np.arange(path.length))
    assert path.segments * path.segment_length == path.length
    place = np.stack(np.unravel_index(path.permutation, path.grid)).reshape(-1, path.segments, path.segment_length)
    for axis in set(range(len(path.grid))) - set(path.axes):
        assert (place[axis] == place[axis, :, :1]).all()  # a segment stays where it is on the axes it does not visit


@given(fields())
def test_reversed_runs_each_segment_from_its_end(fields):
    path = GridPath(*fields)
    forward = path.permutation.reshape(path.segments, -1)
    np.testing.assert_array_equal(path.reversed().permutation.reshape(path.segments, -1), forward[:, ::-1])
    assert path.reversed().reversed() == path


@given(fields())
def test_zigzag_and_hilbert_step_to_neighbours(fields):
    path = GridPath(*fields)
    if path.kind in ("zigzag", "hilbert"):
        assert path.is_continuous
    cells = np.stack(np.unravel_index(path.permutation, path.grid), -1).reshape(path.segments, -1, len(path.grid))
    lengths = np.abs(np.diff(cells, axis=1)).sum(-1)
    assert path.jumps == (lengths != 1).sum()


def test_every_grid_to_33_by_20_is_continuous_and_hilbert_ends_where_parity_lets_it():
    for rows, columns in GRIDS_33_20:
        for path in zigzag_paths((rows, columns)):
            assert path.is_continuous, path
        for axes in ((0, 1), (1, 0)):
            path = GridPath.hilbert((rows, columns), axes)
            n, m = path.shape
            assert path.is_continuous, path
            assert path.permutation[0] == 0
            end = np.unravel_index(path.permutation[-1], path.grid)
            across = n == 1 or (n % 2 == 1 and m % 2 == 0)
            assert (end[axes[0]], end[axes[1]]) == (n - 1, m - 1 if across else 0), path


def test_zigzag_paths_in_the_official_order():
    expected = [
        [0, 1, 2, 5, 4, 3, 6, 7, 8],
        [0, 3, 6, 7, 4, 1, 2, 5, 8],
        [2, 1, 0, 3, 4, 5, 8, 7, 6],
        [2, 5, 8, 7, 4, 1, 0, 3, 6],
        [6, 7, 8, 5, 4, 3, 0, 1, 2],
        [6, 3, 0, 1, 4, 7, 8, 5, 2],
        [8, 7, 6, 3, 4, 5, 2, 1, 0],
        [8, 5, 2, 1, 4, 7, 6, 3, 0],
    ]
    assert [path.permutation.tolist() for path in zigzag_paths((3, 3))] == expected


def test_hilbert_on_powers_of_two_is_hilberts_curve():
    expected = [0, 4, 5, 1, 2, 3, 7, 6, 10, 11, 15, 14, 13, 9, 8, 12]
    assert GridPath.hilbert((4, 4)).permutation.tolist() == expected
    ranks = GridPath.hilbert((32, 32)).inverse.reshape(32, 32)
    for side in (2, 4, 8, 16):  # each quarter, quarter of a quarter, ... is visited in one go
        blocks = ranks.reshape(32 // side, side, 32 // side, side)
        assert (blocks.max((1, 3)) - blocks.min((1, 3)) == side**2 - 1).all()


def test_volume_zigzag_by_hand():
    path = GridPath.zigzag((2, 2, 3))
    assert path.permutation.tolist() == [0, 1, 2, 5, 4, 3, 9, 10, 11, 8, 7, 6]


def test_segments_of_a_video():
    frames = GridPath.zigzag((2, 2, 2), axes=(2, 1))
    assert frames.segments == 2
    assert frames.permutation.tolist() == [0, 2, 3, 1, 4, 6, 7, 5]
    pixels = GridPath.raster((3, 1, 2), axes=(0,), flip=(True,))
    assert pixels.segments == 2
    assert pixels.permutation.tolist() == [4, 2, 0, 5, 3, 1]


def test_is_raster():
    assert GridPath.raster((3, 4)).is_raster
    assert GridPath.zigzag((1, 5)).is_raster
    assert not GridPath.zigzag((2, 5)).is_raster
    assert not GridPath.raster((2, 3, 4), axes=(1, 2)).is_raster  # the same permutation, but two segments


def test_random_is_the_same_everywhere():
    expected = [8, 5, 10, 2, 12, 0, 1, 14, 13, 7, 11, 3, 6, 9, 4, 15]
    assert GridPath.random((4, 4), 7).permutation.tolist() == expected  # checkpoints rely on it
    assert (GridPath.random((4, 4), 7).permutation != GridPath.random((4, 4), 8).permutation).any()


def test_a_path_is_a_static_argument_of_jit_and_its_arrays_are_read_only():
    traces = []

    def visit(x, path):
        traces.append(path)
        return x[path.permutation]

    jitted = jax.jit(visit, static_argnums=1)
    x = jnp.arange(6.0)
    for _ in range(2):
        out = jitted(x, GridPath.zigzag((2, 3)))
    np.testing.assert_array_equal(out, [0, 1, 2, 5, 4, 3])
    assert len(traces) == 1
    path = GridPath.zigzag((2, 3))
    assert path.permutation is GridPath.zigzag((2, 3)).permutation
    with pytest.raises(ValueError, match="read-only"):
        path.permutation[0] = 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": ()}, r"grid=\(\)"),
        ({"grid": (4, 0)}, r"grid=\(4, 0\).*positive"),
        ({"grid": (4, 4), "kind": "spiral"}, "kind='spiral'.*zigzag"),
        ({"grid": (4, 4), "axes": (0, 2)}, r"axes=\(0, 2\)"),
        ({"grid": (4, 4), "axes": (0, 0)}, r"axes=\(0, 0\).*distinct"),
        ({"grid": (4, 4), "flip": (True,)}, r"flip=\(True,\).*axes=\(0, 1\)"),
        ({"grid": (2, 4, 4), "kind": "hilbert"}, r"axes=\(0, 1, 2\).*exactly two"),
        ({"grid": (4, 5), "kind": "official_hilbert"}, r"grid=\(4, 5\).*squares"),
        ({"grid": (4, 4), "seed": 3}, "seed=3.*raster"),
        ({"grid": (4, 4), "kind": "random", "seed": -1}, "seed=-1"),
        ({"grid": (4, 4), "kind": "zigzag", "backward": True}, "backward=True.*flip"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GridPath(**fields)

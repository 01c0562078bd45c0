"""Scan orders by name: which paths, with which period, and which names are refused."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zigma_kernels.grid_path import GridPath, zigzag_paths

from zigma_jax.models.orders import scan_orders
from zigma_jax.plotting import plot_orders

SIDES = st.tuples(st.integers(1, 33), st.integers(1, 20))


@given(SIDES, st.sampled_from(["zigzag8", "hilbert8", "sweep2", "random3"]))
def test_every_path_is_a_permutation_with_its_inverse(grid, name):
    for path in scan_orders(name, grid).paths:
        assert sorted(path.permutation) == list(range(grid[0] * grid[1]))
        np.testing.assert_array_equal(path.permutation[path.inverse], np.arange(path.length))


@given(SIDES)
def test_zigzag_and_hilbert_are_continuous_on_any_image(grid):
    for name in ("zigzag8", "hilbert8"):
        assert all(path.is_continuous for path in scan_orders(name, grid).paths)


def test_k_takes_the_first_k_paths():
    for family in ("zigzag", "hilbert", "official_hilbert"):
        eight = scan_orders(f"{family}8", (5, 5)).paths
        assert len({path.permutation.tobytes() for path in eight}) == 8
        for k in range(1, 9):
            assert scan_orders(f"{family}{k}", (5, 5)).paths == eight[:k]


def test_official_hilbert_on_a_small_square_as_the_original_computes_it():
    expected = [
        [0, 1, 2, 7, 6, 3, 8, 5, 4],
        [0, 7, 8, 1, 6, 5, 2, 3, 4],
        [2, 3, 4, 1, 6, 5, 0, 7, 8],
        [2, 1, 0, 3, 6, 7, 4, 5, 8],
        [4, 5, 8, 3, 6, 7, 2, 1, 0],
        [4, 3, 2, 5, 6, 1, 8, 7, 0],
        [8, 7, 0, 5, 6, 1, 4, 3, 2],
        [8, 5, 4, 7, 6, 3, 0, 1, 2],
    ]
    assert [path.permutation.tolist() for path in scan_orders("official_hilbert8", (3, 3)).paths] == expected


@pytest.mark.parametrize("side", [2, 7, 16])
def test_official_hilbert_is_the_inverse_of_hilbert(side):
    grid = (side, side)
    pairs = zip(scan_orders("hilbert8", grid).paths, scan_orders("official_hilbert8", grid).paths, strict=True)
    for true, official in pairs:
        np.testing.assert_array_equal(official.permutation, true.inverse)


def test_sweeps():
    assert scan_orders("sweep1", (2, 3)).layer(7) == (GridPath.raster((2, 3)),)
    for grid in ((2, 3), (2, 2, 3)):
        plan = scan_orders("sweep2", grid)
        forward, backward = plan.layer(0)
        assert plan.bidirectional
        assert forward.is_raster
        np.testing.assert_array_equal(backward.permutation, np.arange(forward.length)[::-1])


def test_random_depends_on_the_seed_alone():
    plan = scan_orders("random3", (4, 4), seed=5)
    assert plan == scan_orders("random3", (4, 4), seed=5)
    assert plan.paths[:2] == scan_orders("random2", (4, 4), seed=5).paths
    seen = {path.permutation.tobytes() for s in (4, 5, 6) for path in scan_orders("random3", (4, 4), seed=s).paths}
    assert len(seen) == 9


@pytest.mark.parametrize(
    ("name", "period"),
    [
        ("video_st", 16),
        ("video_ts", 16),
        ("video_sst", 12),
        ("video_stst", 16),
        ("video_stt", 24),
        ("video_sssst", 10),
    ],
)
def test_video_period_is_the_least_number_of_layers_after_which_all_repeats(name, period):
    plan = scan_orders(name, (3, 4, 5))
    assert plan.period == period
    letters = name.removeprefix("video_")
    spatial = zigzag_paths((3, 4, 5))
    forward = GridPath.raster((3, 4, 5), (0,))
    temporal = (forward, forward.reversed())
    s = t = 0
    scanned = []
    for i in range(3 * period):  # layer by layer, as the definition says
        if letters[i % len(letters)] == "s":
            scanned.append(spatial[s % 8])
            s += 1
        else:
            scanned.append(temporal[t % 2])
            t += 1
        assert plan.layer(i) == (scanned[-1],)
    for shorter in range(1, period):
        assert scanned[shorter:] != scanned[:-shorter]


def test_video_paths_keep_to_frames_and_pixels():
    frame, _, pixel = scan_orders("video_sst", (3, 2, 2)).paths[:3]
    assert (frame.segments, pixel.segments) == (3, 4)
    assert frame.permutation.tolist() == [0, 1, 3, 2, 4, 5, 7, 6, 8, 9, 11, 10]
    assert pixel.permutation.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


def test_volume_zigzags_are_all_forty_eight_and_continuous():
    paths = scan_orders("zigzag3d48", (3, 4, 2)).paths
    assert len({path.permutation.tobytes() for path in paths}) == 48
    assert all(path.is_continuous and path.segments == 1 for path in paths)
    assert {path.axes[0] for path in paths[:6]} == {0, 1, 2}
    np.testing.assert_array_equal(paths[0].permutation[:4], [0, 1, 3, 2])


@pytest.mark.parametrize(
    ("name", "grid", "rule"),
    [
        ("zigzag9", (4, 4), "zigzag<k> is 1 … 8"),
        ("zigzag0", (4, 4), "zigzag<k> is 1 … 8"),
        ("zigzag08", (4, 4), "zigzag<k> is 1 … 8"),
        ("sweep3", (4, 4), "sweep<k> is 1 … 2"),
        ("random0", (4, 4), "random<k> is at least 1"),
        ("zigzag3d49", (2, 2, 2), "zigzag3d<k> is 1 … 48"),
        ("zigzag", (4, 4), "no such order"),
        ("zigzagN8", (4, 4), "no such order"),
        ("zigzag8 ", (4, 4), "no such order"),
        ("", (4, 4), "no such order"),
        ("video_sxt", (2, 4, 4), "no such order"),
        ("video_ss", (2, 4, 4), "both s"),
        ("zigzag8", (2, 4, 4), r"grid=\(2, 4, 4\) is a video's"),
        ("hilbert8", (2, 4, 4), r"grid=\(2, 4, 4\) is a video's"),
        ("video_sst", (4, 4), r"grid=\(4, 4\) is an image's"),
        ("zigzag3d8", (4, 4), r"grid=\(4, 4\) is an image's"),
        ("official_hilbert8", (4, 5), r"squares only, but grid=\(4, 5\)"),
    ],
)
def test_impossible_orders_are_refused_with_the_rule_and_the_names(name, grid, rule):
    with pytest.raises(ValueError, match=rf"(?s)scan='{name}': .*{rule}.*zigzag1.*hilbert1.*sweep2.*video_"):
        scan_orders(name, grid)


@pytest.mark.parametrize("grid", [(), (4,), (0, 4), (4, -1), (1, 2, 3, 4)])
def test_impossible_grids_are_refused(grid):
    with pytest.raises(ValueError, match=r"grid=\(.*\(H, W\) or \(F, H, W\)"):
        scan_orders("sweep1", grid)


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed=-1"):
        scan_orders("random2", (4, 4), seed=-1)


@pytest.mark.parametrize(
    ("name", "grid", "panels"),
    [("zigzag3", (3, 5), 3), ("sweep2", (1, 1), 2), ("video_sst", (2, 2, 2), 12), ("random1", (1, 4, 1), 1)],
)
def test_plot_draws_one_panel_for_each_path(name, grid, panels, tmp_path):
    pytest.importorskip("matplotlib")
    figure = plot_orders(name, grid)
    drawn = [ax for ax in figure.axes if ax.has_data()]
    assert len(drawn) == panels
    figure.savefig(tmp_path / "orders.png")
    assert (tmp_path / "orders.png").stat().st_size > 1000


def test_plot_takes_paths_and_refuses_what_it_cannot_draw(monkeypatch):
    pytest.importorskip("matplotlib")
    assert len(plot_orders([GridPath.zigzag((2, 3)), GridPath.raster((4, 4))]).axes) == 2
    assert len(plot_orders(scan_orders("sweep2", (2, 3))).axes) == 2
    with pytest.raises(ValueError, match="grid=None"):
        plot_orders("zigzag8")
    with pytest.raises(ValueError, match="empty"):
        plot_orders([])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install zigma_jax\[plot\]"):
        plot_orders("zigzag8", (2, 2))

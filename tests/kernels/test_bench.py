"""The bench: what it reports, and the limits that it holds times against."""

import json
import math
from typing import Any

import jax.numpy as jnp
import pytest
from zigma_kernels import selective_scan
from zigma_kernels.bench import __main__ as bench
from zigma_kernels.bench import timing
from zigma_kernels.bench.limits import Device, Work, conv_work, measure, scan_work
from zigma_kernels.causal_conv.cases import CASES as CONV_CASES
from zigma_kernels.grid_path import GridPath
from zigma_kernels.selective_scan.cases import CASES, Case

CASE = Case("tiny", 1, 6, 2, 1, bench=True)


def run(monkeypatch, capsys, cases, implementations, *flags):
    """Exit status and printed lines."""

    def scan(u, **_):
        return 2 * u

    def broken(u, **_):
        raise TypeError("broken")

    def unsupported(u, **_):
        raise NotImplementedError("odd length")

    known = {"scan": scan, "broken": broken, "unsupported": unsupported}
    ops = {"op": (cases, {name: known[name] for name in implementations}, scan_work)}
    monkeypatch.setattr(timing, "ops", lambda: ops)
    monkeypatch.setattr("sys.argv", ["bench", "--repeats", "1", *map(str, flags)])
    with pytest.raises(SystemExit) as exit_:
        bench.main()
    return exit_.value.code, capsys.readouterr().out.splitlines()


def test_a_report(monkeypatch, capsys, tmp_path):
    cases = {"tiny": CASE, "tested": Case("tested", 1, 6, 2, 1), "large": Case("large", 64, 4096, 1536, bench=True)}
    path = tmp_path / "report.json"
    status, lines = run(monkeypatch, capsys, cases, ["scan", "unsupported"], "--json", path)
    assert status == 0
    report = json.loads(path.read_text())
    assert report.keys() >= {"device", "versions", "date", "limits", "repeats", "results", "skipped", "failed"}
    assert report["limits"] is None  # a CPU
    (row,) = report["results"]["op"]
    assert (row["case"], row["implementation"], row["speed-up"]) == ("tiny", "scan", 1)
    assert 0 < row["forward, ms"] < 1e3
    assert sum(line.startswith("| tiny | 1 x 6 x 2 | float32 | scan |") for line in lines) == 1
    assert "- odd length: op, tiny by unsupported" in lines
    assert "- too large for a CPU: op, large by scan, unsupported" in lines
    assert lines[-1] == "Failed: nothing"


def test_a_failure_stops_nothing_but_is_told(monkeypatch, capsys):
    status, lines = run(monkeypatch, capsys, {"tiny": CASE}, ["broken", "scan"])
    assert status == 1
    assert any(line.startswith("| tiny") for line in lines)
    assert lines[-1] == "- TypeError: broken: op, tiny by broken"


def test_filters(monkeypatch, capsys):
    cases = {"tiny": CASE, "small": Case("small", 1, 8, 2, 1, bench=True)}
    _, lines = run(monkeypatch, capsys, cases, ["broken", "scan"], "--implementations", "scan", "--case", "smal")
    rows = [line for line in lines if line.startswith("| ") and "case" not in line]
    assert len(rows) == 1
    assert rows[0].startswith("| small | 1 x 8 x 2 | float32 | scan |")
    status, _ = run(monkeypatch, capsys, cases, ["scan"], "--implementations", "fast")
    assert status == 2


def test_arguments_are_drawn_on_the_device():
    args = timing.drawn(tuple((name, x.shape, x.dtype) for name, x in CASES["bfloat16"].shapes.items()))
    for name, x in CASES["bfloat16"].arguments().items():
        assert (args[name].shape, args[name].dtype) == (x.shape, x.dtype)
    assert (args["A"] < 0).all()


def test_whole_sequence_is_the_scan():
    case = Case("", 1, 6, 2, 2)
    args: dict[str, Any] = {name: jnp.asarray(x) for name, x in case.arguments().items()}
    y, expected = timing.whole_sequence(**args, order=None), selective_scan(**args)
    assert jnp.abs(y - expected).max() <= 1e-5 * jnp.abs(expected).max()
    with pytest.raises(NotImplementedError, match="raster order only"):
        timing.whole_sequence(**args, order=GridPath.zigzag((2, 3)))


def test_limits():
    device = Device(bandwidth=2e12, processors=100, clock=1e9)
    assert device.milliseconds(Work(bytes=2 * 10**9, special=0, instructions=0)) == pytest.approx(1)
    assert device.milliseconds(Work(0, special=16 * 10**8, instructions=128 * 10**7)) == pytest.approx(1)
    assert device.milliseconds(Work(0, 0, 128 * 10**8), Work(2 * 10**9, 0, 0)) == pytest.approx(2)
    # An H100 by its data sheet, 32 x 1024 x 1536 in bfloat16: instructions bound both passes of the scan.
    h100 = Device(bandwidth=3.35e12, processors=132, clock=1.98e9)
    forward, backward = scan_work(CASES["1024 tokens"].shapes)
    elements = 32 * 1024 * 1536
    assert forward.bytes == 4 * 2 * elements + 2 * 2 * 32 * 1024 * 16 + 4 * 1536 * (16 + 2)
    assert h100.milliseconds(forward) == pytest.approx(1e3 * 160 * elements / (132 * 1.98e9 * 128))
    assert 0.2 < h100.milliseconds(forward) < 0.3 < h100.milliseconds(backward) < 0.5
    # The convolution is bound by memory: two rows forward, three backward.
    forward, backward = conv_work(CONV_CASES["1024 tokens"].shapes)
    assert h100.milliseconds(forward) == pytest.approx(1e3 * 2 * 2 * elements / 3.35e12, rel=1e-3)
    assert h100.milliseconds(backward) == pytest.approx(1e3 * 3 * 2 * elements / 3.35e12, rel=1e-3)


def test_a_cpu_has_no_known_limits():
    assert measure(lambda run: math.nan) is None

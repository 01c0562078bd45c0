"""Kernels are checked at their first use, where they have not been verified, and not used where they are wrong."""

import json
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from zigma_kernels import causal_conv, explain, selective_scan, trust
from zigma_kernels.causal_conv import IMPLEMENTATIONS, xla
from zigma_kernels.causal_conv.cases import FIRST_USE
from zigma_kernels.dispatch import CpuKernel, compiling_for

X = jnp.ones((1, 4, 2))
WEIGHT = jnp.ones((4, 2))


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Puts an implementation before the others; returns the list of its calls."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trust, "_verdicts", {})
    monkeypatch.setattr(trust.library, "require", lambda: None)
    monkeypatch.setitem(trust.SOURCES, ("causal_conv", "fake"), ("causal_conv/xla.py",))
    monkeypatch.setattr(sys.modules["zigma_kernels.causal_conv.cases"], "FIRST_USE", FIRST_USE[1:2])  # float32
    others = {name: IMPLEMENTATIONS[name] for name in ("xla", "reference")}

    def put(run):
        calls = []

        def counted(*args):
            calls.append(args[0].shape)
            return run(*args)

        known = {"fake": CpuKernel(counted), **others}
        monkeypatch.setattr(sys.modules["zigma_kernels.causal_conv.api"], "IMPLEMENTATIONS", known)
        return calls

    return put


def wrong(*args):
    y: Any = xla.causal_conv(*args)
    return 1.5 * y


def broken(*args):
    raise RuntimeError("INTERNAL: illegal address\nmore")


def checked(calls):
    """How many of the calls were of the check."""
    return sum(shape != X.shape for shape in calls)


def forget():
    """As a later process, which knows what is on the disk alone."""
    trust._verdicts.clear()


def test_a_right_kernel_is_checked_once_and_used(fake):
    calls = fake(xla.causal_conv)
    jax.jit(lambda *args: causal_conv(*args))(X, WEIGHT)  # while it is traced
    assert checked(calls) == 1
    assert calls[-1] == X.shape
    jax.vmap(causal_conv, in_axes=(0, None))(X[None], WEIGHT)
    assert explain(causal_conv, X, WEIGHT)["fake"] == "chosen"
    assert checked(calls) == 1
    forget()
    assert explain(causal_conv, X, WEIGHT)["fake"] == "chosen"
    assert checked(calls) == 1  # the disk remembers


def test_a_check_knows_nothing_of_the_mesh_around_it(fake):
    calls = fake(xla.causal_conv)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        conv = jax.shard_map(lambda x: causal_conv(x, WEIGHT), in_specs=P("data"), out_specs=P("data"))
        assert jax.jit(conv)(jnp.ones((2, 4, 2))).shape == (2, 4, 2)
    assert checked(calls) == 1


def test_a_wrong_kernel_is_replaced_with_a_warning(fake, tmp_path):
    calls = fake(wrong)
    with pytest.warns(RuntimeWarning, match=r"causal_conv: fake is not used, .* differs from that of xla by 5\.0e-01"):
        y = jax.jit(lambda *args: causal_conv(*args))(X, WEIGHT)
    assert jnp.array_equal(y, causal_conv(X, WEIGHT, implementation="xla"))  # it warns once
    assert len(calls) == 1
    found = explain(causal_conv, X, WEIGHT)
    assert "found to be wrong on CPU" in found["fake"]
    assert found["xla"] == "chosen"
    forget()
    with pytest.warns(RuntimeWarning, match=str(tmp_path)):  # once a process, since it costs time
        causal_conv(X, WEIGHT)
    assert len(calls) == 1
    assert not jnp.array_equal(causal_conv(X, WEIGHT, implementation="fake"), y)  # by name it is still there


def test_a_kernel_that_fails_and_one_that_differs_from_itself(fake, monkeypatch):
    fake(broken)
    with pytest.warns(RuntimeWarning, match="it fails: RuntimeError: INTERNAL: illegal address. The next"):
        causal_conv(X, WEIGHT)
    forget()
    monkeypatch.setattr(trust, "fingerprint", lambda *_: "another form of it")
    fake(xla.causal_conv)
    monkeypatch.setattr(trust.agreement, "same_bits", lambda *_: False)
    with pytest.warns(RuntimeWarning, match="two runs differ"):
        causal_conv(X, WEIGHT)


def test_no_room_is_no_lasting_fault(fake, tmp_path):
    def full(*args):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    calls = fake(full)
    for n in (1, 2):
        with pytest.warns(RuntimeWarning, match="RESOURCE_EXHAUSTED"):
            causal_conv(X, WEIGHT)
        assert len(calls) == n
        forget()
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("content", ["", "[]", '{"kernel": [], "wrong": ""}', '{"wrong": 1}', "\x00"])
def test_an_odd_file_is_no_verdict(fake, tmp_path, content):
    calls = fake(broken)
    with warnings.catch_warnings(action="ignore"):
        causal_conv(X, WEIGHT)
        (path,) = tmp_path.rglob("*.json")
        assert json.loads(path.read_text())["wrong"].startswith("it fails")
        path.write_text(content)
        forget()
        causal_conv(X, WEIGHT)
    assert len(calls) == 2


def test_a_disk_that_cannot_be_written_to(fake, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    calls = fake(xla.causal_conv)
    causal_conv(X, WEIGHT)
    causal_conv(X, WEIGHT)
    assert checked(calls) == 1


def test_verified_kernels_and_devices_elsewhere_are_not_checked(fake, monkeypatch):
    calls = fake(broken)
    with compiling_for(type("Device", (), {"platform": "cpu", "device_kind": "cpu"})()), pytest.raises(RuntimeError):
        causal_conv(X, WEIGHT)
    kernel = "causal_conv", "fake", trust.fingerprint("causal_conv", "fake"), trust.kind_of(jax.devices()[0])
    monkeypatch.setattr(trust, "VERIFIED", {kernel})
    with pytest.raises(RuntimeError, match="illegal address"):
        causal_conv(X, WEIGHT)
    assert calls == [X.shape] * 2


def test_required_kernels_have_to_be_right(fake, monkeypatch):
    fake(wrong)
    monkeypatch.setenv("ZIGMA_CPU_KERNELS", "require")
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="require, but found to be wrong"):
        causal_conv(X, WEIGHT)


def test_the_environment_names_an_implementation(monkeypatch):
    monkeypatch.setenv("ZIGMA_SCAN", "reference")
    monkeypatch.setenv("ZIGMA_CONV", "fast")
    found = explain(selective_scan, X, X, -jnp.ones((2, 2)), X, X)
    assert (found["reference"], found["cpu"]) == ("chosen", "ZIGMA_SCAN=reference")
    with pytest.raises(ValueError, match="ZIGMA_CONV=fast: unknown implementation; known: cpu, xla, reference, mosa"):
        causal_conv(X, WEIGHT)
    assert causal_conv(X, WEIGHT, implementation="xla").shape == X.shape  # what a call says, counts


def test_every_source_is_there():
    for kernel, patterns in trust.SOURCES.items():
        folder = trust.Path(trust.__file__).parent
        assert all(list(folder.glob(pattern)) for pattern in patterns), kernel
        assert len(trust.fingerprint(*kernel)) == 16

"""What is chosen by default, on which device, and how one sees it."""

import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zigma_kernels import GridPath, causal_conv, explain, selective_scan
from zigma_kernels.dispatch import NvidiaKernel, dispatch, nvidia_capability, require_nvidia_gpu


def gpus(*versions):
    return lambda backend=None: [
        SimpleNamespace(platform="gpu", device_kind=f"GPU {version}", compute_capability=version)
        for version in versions
    ]


def even(x):
    if x % 2:
        raise NotImplementedError(f"x = {x} is odd")
    return "even"


IMPLEMENTATIONS = {
    "hopper": NvidiaKernel(lambda x: "hopper", (9, 0)),
    "ampere": NvidiaKernel(even, (8, 0)),
    "any": lambda x: "any",
}


@pytest.mark.parametrize(
    ("versions", "x", "chosen"),
    [
        (("9.0", "9.0"), 1, "hopper"),
        (("10.0",), 1, "hopper"),
        (("8.9", "9.0"), 2, "even"),
        (("8.0",), 1, "any"),
        (("7.5",), 2, "any"),
        (("gfx942",), 2, "any"),
    ],
)
def test_the_first_that_supports_device_and_call(monkeypatch, versions, x, chosen):
    monkeypatch.setattr(jax, "devices", gpus(*versions))
    assert dispatch("op", IMPLEMENTATIONS, None, x) == chosen


def test_a_name_asks_no_device_and_never_falls_back():
    assert nvidia_capability() is None
    assert dispatch("op", IMPLEMENTATIONS, "hopper", 1) == "hopper"
    assert dispatch("op", IMPLEMENTATIONS, None, 2) == "any"
    with pytest.raises(NotImplementedError, match="x = 1 is odd"):
        dispatch("op", IMPLEMENTATIONS, "ampere", 1)
    with pytest.raises(ValueError, match="unknown implementation 'volta'; known: hopper, ampere, any"):
        dispatch("op", IMPLEMENTATIONS, "volta", 1)


def test_nothing_supports_the_call(monkeypatch):
    monkeypatch.setattr(jax, "devices", gpus("8.0"))
    kernels = {name: IMPLEMENTATIONS[name] for name in ("hopper", "ampere")}
    reasons = r"op: no implementation .* hopper: needs .* 9\.0 or higher; here it is 8\.0; ampere: x = 1 is odd"
    with pytest.raises(NotImplementedError, match=reasons):
        dispatch("op", kernels, None, 1)


def test_the_default_device_counts(monkeypatch):
    monkeypatch.setattr(jax, "devices", gpus("9.0"))
    assert nvidia_capability() == (9, 0)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        assert nvidia_capability() is None
        with pytest.raises(NotImplementedError, match=r"9\.0 or higher; the default device is cpu"):
            require_nvidia_gpu((9, 0))


def test_the_choice_is_logged(caplog):
    with caplog.at_level(logging.DEBUG, "zigma_kernels"):
        dispatch("op", IMPLEMENTATIONS, None, 1)
    assert "op: {'hopper': 'needs" in caplog.text
    assert "'any': 'chosen'}" in caplog.text


def test_explain(monkeypatch):
    def op(x, *, y, implementation=None):
        assert isinstance(y, jax.Array)
        return jnp.zeros(len(dispatch("op", IMPLEMENTATIONS, implementation, x)))

    monkeypatch.setattr(jax, "devices", gpus("8.0"))
    y = jax.ShapeDtypeStruct((2,), "float32")
    assert explain(op, 2, y=y, implementation="hopper") == {
        "hopper": "needs an NVIDIA GPU of compute capability 9.0 or higher; here it is 8.0",
        "ampere": "chosen",
        "any": "ranks below the one chosen",
    }


def test_explain_the_ops():
    def floats(*shape):
        return jax.ShapeDtypeStruct(shape, "float32")

    rows, states = floats(2, 12, 8), floats(2, 12, 4)
    found = explain(selective_scan, rows, rows, floats(8, 4), states, states, order=GridPath.zigzag((3, 4)))
    assert found["cpu"] == "chosen"
    assert found["xla"] == found["reference"] == "ranks below the one chosen"
    order = np.arange(12)[::-1]
    assert explain(causal_conv, jnp.zeros((2, 12, 8)), weight=floats(4, 8), order=order)["cpu"] == "chosen"

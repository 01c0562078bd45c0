"""PyTorch's files from before 1.6."""

import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from zigma_jax.interop.torch_file import TorchFileError, UnsafeCheckpointError, read_torch

GOLDEN = Path(__file__).parents[1] / "goldens" / "torch_legacy.pt"
MAGIC, VERSION = pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)
SIZES = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)


def test_every_kind_of_tensor():
    file = read_torch(GOLDEN)
    assert file["epoch"] == 3
    state = file["state"]
    assert list(state) == ["a", "b", "n", "h", "p", "empty", "c"]
    np.testing.assert_array_equal(state["a"], np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(state["b"], np.array([4, 6, 8], np.float32))
    np.testing.assert_array_equal(state["h"], np.array([1.5, -2], ml_dtypes.bfloat16))
    np.testing.assert_array_equal(state["p"], np.ones(2, np.float32))
    np.testing.assert_array_equal(state["c"], np.array([1 + 2j], np.complex64))
    assert state["n"] == 7
    assert state["n"].dtype == np.int64
    assert state["empty"].shape == (0, 3)
    state["a"][1, 1] = 9  # a[1, 1] is b[0]
    assert state["b"][0] == 9


def test_only_the_keys_asked_for():
    assert read_torch(GOLDEN, ["epoch"]) == {"epoch": 3}


def test_truncated_anywhere(tmp_path):
    whole, path = GOLDEN.read_bytes(), tmp_path / "a.pt"
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(TorchFileError, match=str(path)):
            read_torch(path)


def test_damage_raises_nothing_else(tmp_path):
    whole, rng, refused = GOLDEN.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        data = bytearray(whole)
        data[rng.integers(len(data))] = rng.integers(256)
        (tmp_path / "a.pt").write_bytes(data)
        try:
            read_torch(tmp_path / "a.pt")
        except TorchFileError:
            refused += 1
    assert refused > 15


@pytest.mark.parametrize(
    ("rest", "error", "message"),
    [
        (VERSION + SIZES + b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", UnsafeCheckpointError, "os.system"),
        (pickle.dumps(1002, 2) + SIZES, TorchFileError, "version 1002"),
        (VERSION + pickle.dumps({"little_endian": False}, 2), TorchFileError, "big-endian"),
        (VERSION + SIZES + pickle.dumps({}, 2) + pickle.dumps(["1"], 2), TorchFileError, "keys of the storages"),
    ],
)
def test_what_is_refused(tmp_path, rest, error, message):
    path = tmp_path / "a.pt"
    path.write_bytes(MAGIC + rest)
    with pytest.raises(error, match=message):
        read_torch(path)

"""PyTorch files without PyTorch: what they hold, and what is written."""

import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.interop.torch_pickles import SIX, save, tensor, text
from zigma_jax.interop.inert_pickle import Record
from zigma_jax.interop.plain_data import to_plain
from zigma_jax.interop.torch_file import TorchFileError, read_torch, write_torch

GOLDENS = Path(__file__).parents[1] / "goldens"
CHECKPOINTS = sorted(path.stem for path in GOLDENS.glob("*.pt") if path.with_suffix(".npz").exists())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_reads_official_checkpoints(name):
    file, arrays = read_torch(GOLDENS / f"{name}.pt"), np.load(GOLDENS / f"{name}.npz")
    assert list(file) == ["model", "ema", "opt", "args", "train_steps", "best_fid"]
    params = file["args"]["model"]["params"]
    assert type(params) is dict
    assert {"scan_type", "use_pe", "embed_dim", "depth", "img_dim", "patch_size"} <= params.keys()
    assert type(file["model"]) is OrderedDict
    assert list(file["model"]) == list(file["ema"])
    for gradient in (key for key in arrays.files if key.startswith("grad/")):
        assert file["ema"][gradient.removeprefix("grad/")].shape == arrays[gradient].shape
    width = params["embed_dim"]
    for key, array in file["ema"].items():
        assert array.dtype == np.float32, key
        assert np.isfinite(array).all(), key
        if key.endswith("mixer.A_log"):  # the logarithms of 1 … 16, a little perturbed
            assert np.abs(array - np.log(np.arange(1, 17))).max() < 0.5
            assert array.shape == (2 * width, 16)


def test_reads_every_kind_of_value():
    file = read_torch(GOLDENS / "torch_mixed.pt")
    expected = {
        "parameter": np.array([1, 2], "f4"),
        "scalar": np.array(2.5, "f4"),
        "empty": np.zeros((0, 3), "f4"),
        "bfloat16": np.array([1.0, -2.5, 3e38], ml_dtypes.bfloat16),
        "float16": np.array([1, 65504], "f2"),
        "float64": np.array([1e300]),
        "int64": np.array([-(2**63), 2**63 - 1]),
        "int32": np.array([-5], "i4"),
        "int16": np.array([-300], "i2"),
        "int8": np.array([-128], "i1"),
        "uint8": np.array([255], "u1"),
        "uint16": np.array([65535], "u2"),
        "bool": np.array([True, False]),
        "complex64": np.array([1 + 2j], "c8"),
        "base": np.arange(24, dtype="f4").reshape(4, 6),
        "view": np.arange(24, dtype="f4").reshape(4, 6)[1:3, ::2].T,
    }
    for key, array in expected.items():
        assert file[key].dtype == array.dtype, key
        np.testing.assert_array_equal(file[key], array, strict=True, err_msg=key)
    assert file["size"] == (2, 3)
    assert (file["device"], file["dtype"], file["long"], file["text"]) == (
        "cuda:1",
        "torch.float32",
        2**70,
        "é",
    )
    assert file["best_fid"] == 12.5
    assert file["none"] is None
    assert file["opt"]["param_groups"][0]["betas"] == (0.9, 0.999)
    np.testing.assert_array_equal(file["opt"]["state"][0]["step"], np.float32(1))
    # Tensors that shared a storage share memory.
    file["base"][1, 0] = -1
    assert file["view"][0, 0] == -1


def test_omegaconf_becomes_plain_data():
    file = read_torch(GOLDENS / "torch_mixed.pt", keys=["args", "namespace"])
    assert list(file) == ["args", "namespace"]
    assert file["namespace"] == {"depth": 3, "betas": (0.9, 0.95)}
    params = {"img_dim": 8, "video_frames": 3, "scan_type": "v2", "use_pe": 2}  # frames: ${data.video_frames}
    assert file["args"] == {
        "model": {"target": "model_zigma.ZigMa", "params": params},
        "data": {"video_frames": 3, "name": "ucf101", "mean": [0.5, None, True]},
        "optim": {"lr": 1e-4, "wd": "${.lr}"},
        "run": "${now:%Y}",
        "note": "of ${data.name}",
    }


def test_unread_keys_are_not_touched(tmp_path):
    data = b"\x80\x02}(" + text("a") + tensor((6,), (1,))[2:-1] + text("b") + b"K\x07u."
    path = save(tmp_path / "a.pt", data, {"0": SIX.tobytes()})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(SIX.tobytes(), SIX[::-1].tobytes()))  # breaks the checksum of "a"
    assert read_torch(path, keys=["b"]) == {"b": 7}
    with pytest.raises(TorchFileError, match="data/0"):
        read_torch(path)
    with pytest.raises(TorchFileError, match=r"\['a', 'b'\]"):
        read_torch(path, keys=["ema"])


def test_what_training_programs_put_beside_the_weights():
    """Plain data where it is plain; anything else is a record, and never makes the file unreadable."""
    file = read_torch(GOLDENS / "torch_odd.pt")
    assert file["set"] == {1, 2}
    assert file["frozenset"] == {"a", "b"}
    assert file["counter"] == {"a": 2, "b": 1}
    assert file["tuple_key"] == {(1, "a"): 2, "torch.float32": 3}
    assert (file["defaultdict"], file["deque"], file["complex"]) == ({"a": [1]}, [1, 2], 1 + 2j)
    assert (file["bytes"], file["bytearray"]) == (b"\x00\xff", b"ab")
    assert (file["namespace"], file["settings"]) == ({"depth": 3}, {"depth": 4, "inner": {"a": 1}})
    assert (file["numpy_scalar"], file["numpy_bool"]) == (1.5, True)
    assert (file["size"], file["device"], file["function"]) == ((2, 3), "cuda:1", "somebodys_program.schedule")
    np.testing.assert_array_equal(file["array"], np.arange(6).reshape(2, 3), strict=True)
    np.testing.assert_array_equal(file["fortran"], np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(file["numpy_random"][1], np.random.RandomState(0).get_state()[1])
    np.testing.assert_array_equal(file["transposed"], np.arange(6, dtype="f4").reshape(2, 3).T, strict=True)
    np.testing.assert_array_equal(file["expanded"], np.ones((2, 3), "f4"), strict=True)
    np.testing.assert_array_equal(file["storage"].view("<f4"), np.arange(6))
    np.testing.assert_array_equal(file["float8"].astype("f4"), np.arange(6))
    for name in ("marked", "parameter", "buffer", "subclass"):
        np.testing.assert_array_equal(file[name], np.arange(6, dtype="f4"), strict=True, err_msg=name)
    # A conjugated view would be the wrong numbers.
    records = ("date", "path", "mode", "trainer", "objects", "texts", "numpy_date", "generator", "conjugate", "meta")
    for name in (*records, "sparse", "csr", "quantized", "complex32", "layout"):
        assert isinstance(file[name], Record), name
    assert file["trainer"].state["itself"] is file["trainer"]
    assert file["sparse"].name == "torch._utils._rebuild_sparse_tensor"


def test_zip64(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"data.pkl": tensor((2, 3), (3, 1)), "data/0": SIX.tobytes()}.items():
            with file.open(f"x/{name}", "w", force_zip64=True) as entry:
                entry.write(data)
    np.testing.assert_array_equal(read_torch(path), SIX.reshape(2, 3))


def test_big_endian(tmp_path):
    path = save(tmp_path / "a.pt", tensor((2, 3), (3, 1)), {"0": SIX.astype(">f4").tobytes()}, byteorder="big")
    np.testing.assert_array_equal(read_torch(path), SIX.reshape(2, 3))
    save(path, tensor((6,), (1,)), {"0": SIX.tobytes()}, byteorder="middle")
    with pytest.raises(TorchFileError, match="byteorder"):
        read_torch(path)


def test_interpolations_that_lead_nowhere():
    def config(content):
        record = Record("omegaconf.dictconfig.DictConfig", ())
        record.state = {"_content": content, "_parent": None}
        return record

    circle = {
        "a": "${b}",
        "b": "${a}",
        "c": "${c}",
        "tree": "${sub}",
        "sub": {"x": "${tree}", "y": "${sub.z}", "z": 4},
    }
    plain = to_plain(config({**circle, "nothing": "${no.such}", "shell": "${oc.env:HOME}", "missing": "???"}))
    assert plain["sub"] == {"x": "${sub}", "y": 4, "z": 4}
    assert plain["a"] in ("${a}", "${b}")
    assert (plain["nothing"], plain["shell"], plain["missing"]) == ("${no.such}", "${oc.env:HOME}", "???")
    assert to_plain(config(None)) is None


# -------------------- writing


def test_round_trip(tmp_path):
    shared = np.arange(6, dtype="f4").reshape(2, 3)
    names = ["f4", "f8", "f2", "i8", "i4", "i2", "i1", "u1", "?", "c8", "c16"]
    tree = {
        "model": OrderedDict({"w": shared, "t": shared.T, "scalar": np.array(3, "f4"), "none": np.zeros((0, 2))}),
        "ema": OrderedDict({"w": shared}),
        "dtypes": {name: np.array([0, 1, 100], name) for name in names},
        "bfloat16": np.array([1, -2.5], ml_dtypes.bfloat16),
        "args": {
            "model": {"params": {"depth": 3, "scan_type": "é", "lr": 1e-4, "on": True, "off": False, "none": None}}
        },
        "numbers": [0, -1, 255, 2**31 - 1, -(2**31), 2**31, 2**63, -(2**70), float("inf"), 5e-324],
        7: (1, (2, []), {}),
    }
    write_torch(tmp_path / "a.pt", tree)
    back = read_torch(tmp_path / "a.pt")
    assert list(back) == list(tree)
    assert type(back["model"]) is OrderedDict
    assert type(back["args"]) is dict
    assert back["args"] == tree["args"]
    assert back["numbers"] == tree["numbers"]
    assert back[7] == tree[7]
    for group in ("model", "dtypes"):
        for key, array in tree[group].items():
            np.testing.assert_array_equal(back[group][key], array, strict=True)
    np.testing.assert_array_equal(back["bfloat16"], tree["bfloat16"], strict=True)
    assert np.shares_memory(back["model"]["w"], back["ema"]["w"])
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


def test_written_bytes_are_deterministic_and_aligned(tmp_path):
    tree = {"a": np.arange(3), "b": np.arange(5, dtype="f4")}
    write_torch(tmp_path / "a.pt", tree)
    write_torch(tmp_path / "b.pt", tree)
    data = (tmp_path / "a.pt").read_bytes()
    assert data == (tmp_path / "b.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pt") as file:
        entries = file.infolist()
        assert file.testzip() is None
    assert {"archive/data.pkl", "archive/version", "archive/byteorder"} < {entry.filename for entry in entries}
    for entry in entries:
        name, extra = struct.unpack_from("<HH", data, entry.header_offset + 26)
        assert (entry.header_offset + 30 + name + extra) % 64 == 0


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (np.float32(1), r"\['a'\]\[1\]: a NumPy scalar"),
        (np.array(["x"]), r"\['a'\]\[1\]: PyTorch has no tensors of dtype"),
        (object(), r"\['a'\]\[1\]: a object"),
        ({(1, 2): 3}, r"\['a'\]\[1\]: a key of type tuple"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, value, place):
    with pytest.raises(TypeError, match=place):
        write_torch(tmp_path / "a.pt", {"a": [0, value]})
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_torch(tmp_path / "a.pt", {"a": 1})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="No space"):
        write_torch(tmp_path / "a.pt", {"a": 2})
    monkeypatch.undo()
    assert read_torch(tmp_path / "a.pt") == {"a": 1}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


def test_circle_cannot_be_written(tmp_path):
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="contains itself"):
        write_torch(tmp_path / "a.pt", circle)

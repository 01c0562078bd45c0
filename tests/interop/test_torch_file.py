"""PyTorch files without PyTorch: what they hold, what is written, and that nothing in them can run."""

import os
import pickle
import re
import struct
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from zigma_jax.interop.inert_pickle import Record
from zigma_jax.interop.plain_data import to_plain
from zigma_jax.interop.torch_file import TorchFileError, UnsafeCheckpointError, read_torch, write_torch

GOLDENS = Path(__file__).parents[1] / "goldens"
CHECKPOINTS = sorted(path.stem for path in GOLDENS.glob("*.pt") if path.with_suffix(".npz").exists())


def save(path: Path, data: bytes, storages: dict[str, bytes] | None = None, **entries: str) -> Path:
    """A file in torch.save's layout around a pickle made by hand."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", data)
        file.writestr("x/version", "3\n")
        for name, text in entries.items():
            file.writestr(f"x/{name}", text)
        for name, numbers in (storages or {}).items():
            file.writestr(f"x/data/{name}", numbers)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integers(*values: int) -> bytes:
    return b"(" + b"".join(b"\x8a" + bytes([len(n)]) + n for n in map(pickle.encode_long, values)) + b"t"


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, size: int = 6) -> bytes:
    """The pickle of one float32 tensor over entry data/0 of `size` numbers."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += integers(size)[1:-1] + b"tQ"
    view = integers(offset)[1:-1] + integers(*shape) + integers(*stride)
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"\x89ccollections\nOrderedDict\n)RtR."


SIX = np.arange(6, dtype="<f4")


# -------------------- reading


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


# -------------------- malicious


class Attack:
    """Pickles as a call, and can set state after it."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def attacks(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"
    nested = pickle.dumps(Attack(os.system, command))
    call = b"(" + text(command) + b"t"
    one = b"(" + text(command)
    ordered = b"\x80\x02ccollections\nOrderedDict\n)R"
    rebuild = b"ctorch._utils\n_rebuild_parameter\n"
    return {
        "reduce os.system": pickle.dumps(Attack(os.system, command), 2),
        "reduce, protocol 4": pickle.dumps(Attack(os.system, command), 4),
        "reduce, protocol 0": pickle.dumps(Attack(os.system, command), 0),
        "subprocess": pickle.dumps(Attack(subprocess.check_output, ["touch", str(marker)]), 2),
        "eval": pickle.dumps(Attack(eval, f"__import__('os').system({command!r})"), 2),
        "exec": pickle.dumps(Attack(exec, f"import os; os.system({command!r})"), 2),
        "getattr": b"\x80\x02c__builtin__\ngetattr\n(c__builtin__\n__import__\n("
        + (text("os") + b"tR" + text("system") + b"tR" + call + b"R."),
        "import": pickle.dumps(Attack(__import__, "os"), 2),
        "nested loads": pickle.dumps(Attack(pickle.loads, nested), 2),
        "open": pickle.dumps(Attack(open, str(marker), "w"), 2),
        "inst": b"\x80\x02(" + text(command) + b"ios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\n" + text(command) + b"o.",
        "newobj": b"\x80\x02cos\nsystem\n" + call + b"\x81.",
        "newobj_ex": b"\x80\x04cos\nsystem\n" + call + b"}\x92.",
        "stack_global": b"\x80\x04" + text("os") + text("system") + b"\x93" + call + b"R.",
        "dotted": b"\x80\x04" + text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93.",
        "dotted module": b"\x80\x02ccollections.abc.os\nsystem\n" + call + b"R.",
        "torch.hub": b"\x80\x02ctorch.hub\nload\n" + call + b"R.",
        "torch.load": b"\x80\x02ctorch\nload\n" + call + b"R.",
        "torch.os": b"\x80\x02ctorch\nos.system\n" + call + b"R.",
        "omegaconf's imports": b"\x80\x02comegaconf.base\nos.system\n" + call + b"R.",
        "numpy": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n" + call + b"R.",
        "this module": b"\x80\x02czigma_jax.interop.torch_file\nos.system\n" + call + b"R.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent id": b"\x80\x02Pos.system\n.",
        "call what a call gave": ordered + b")R.",
        "call a string": b"\x80\x02" + text("os.system") + call + b"R.",
        "setstate of a name": b"\x80\x02" + rebuild + b"}" + text("__setstate__") + b"cos\nsystem\nsb" + one + b"tb.",
        "state of a function": b"\x80\x02" + rebuild + b"N}" + text("__code__") + b"Ns\x86b.",
        "state of a dict": b"\x80\x02}}" + text("__class__") + b"Nsb.",
        "unused": b"\x80\x02cos\nsystem\n0N.",
    }


@pytest.mark.parametrize("name", list(attacks(Path("x"))))
def test_nothing_in_the_file_runs(tmp_path, name):
    marker = tmp_path / "ran"
    path = save(tmp_path / "a.pt", attacks(marker)[name])
    with pytest.raises(UnsafeCheckpointError) as caught:
        read_torch(path)
    assert not marker.exists()
    assert "a.pt" in str(caught.value)
    if name in ("reduce os.system", "inst", "newobj", "stack_global"):
        assert "system" in str(caught.value)


def test_the_attack_would_work_on_pickle(tmp_path):
    """The markers above mean something: Python's own unpickler runs them."""
    pickle.loads(attacks(tmp_path / "ran")["reduce os.system"])
    pickle.loads(attacks(tmp_path / "ran2")["inst"])
    pickle.loads(attacks(tmp_path / "ran3")["getattr"])
    assert {path.name for path in tmp_path.iterdir()} == {"ran", "ran2", "ran3"}


def test_objects_of_config_classes_are_only_records(tmp_path):
    """A record's class is never looked up, its state never applied."""
    data = b"\x80\x02cargparse\nNamespace\n)\x81}" + text("__class__") + text("os._wrap_close") + b"sb."
    assert read_torch(save(tmp_path / "a.pt", data)) == {"__class__": "os._wrap_close"}
    data = b"\x80\x02comegaconf.base\nMetadata\n)\x81."
    with pytest.raises(TorchFileError, match=r"omegaconf\.base\.Metadata"):
        read_torch(save(tmp_path / "b.pt", data))


# -------------------- damaged


def test_truncated(tmp_path):
    data = (GOLDENS / "sweep2_class.pt").read_bytes()
    path = tmp_path / "a.pt"
    for length in (100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(TorchFileError, match=r"a\.pt: truncated"):
            read_torch(path)


def test_flipped_bit_is_found(tmp_path):
    data = bytearray((GOLDENS / "sweep2_class.pt").read_bytes())
    array = read_torch(GOLDENS / "sweep2_class.pt")["ema"]["x_embedder.proj.weight"]
    data[data.index(array.tobytes()) + 5] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(TorchFileError, match=r"a\.pt: entry sweep2_class/data/1 is damaged: Bad CRC"):
        read_torch(tmp_path / "a.pt")


def test_missing_entries(tmp_path):
    path = save(tmp_path / "a.pt", tensor((6,), (1,)))
    with pytest.raises(TorchFileError, match="entry x/data/0 is missing"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(TorchFileError, match=r"data\.pkl"):
        read_torch(path)


@pytest.mark.parametrize("length", [0, 20, 23, 28])
def test_storage_of_another_size(tmp_path, length):
    path = save(tmp_path / "a.pt", tensor((2,), (1,)), {"0": bytes(length)})
    with pytest.raises(TorchFileError, match=f"entry x/data/0 has {length} bytes, expected 6 numbers of 4 bytes"):
        read_torch(path)


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((7,), (1,), 0),
        ((2, 3), (3, 1), 1),
        ((2, 2), (5, 1), 0),
        ((10**12, 10**12), (10**12, 1), 0),
        ((10**9,), (0,), 0),  # one number, a billion times
        ((2**62, 4), (1, 1), 0),  # the product is 2^64
        ((0, 2**62), (1, 1), 0),
        ((0, 2**40, 2**40), (1, 1, 1), 0),
        ((1,), (2**62,), 0),
        ((2,), (2**70,), 0),
        ((2,), (-1,), 1),
        ((-1,), (1,), 0),
        ((2, 3), (1,), 0),
        ((1,) * 65, (1,) * 65, 0),
    ],
)
def test_absurd_shapes(tmp_path, shape, stride, offset):
    path = save(tmp_path / "a.pt", tensor(shape, stride, offset), {"0": SIX.tobytes()})
    with pytest.raises(TorchFileError, match=r"does not fit entry data/0|malformed pickle: a tensor's"):
        read_torch(path)


def test_valid_views(tmp_path):
    views = [
        ((2, 3), (3, 1), 0),
        ((3, 2), (1, 3), 0),
        ((2,), (3,), 2),
        ((), (), 5),
        ((0,), (1,), 6),
        ((2, 2), (1, 1), 0),
    ]
    for shape, stride, offset in views:
        path = save(tmp_path / "a.pt", tensor(shape, stride, offset), {"0": SIX.tobytes()})
        array = read_torch(path)
        index = offset + sum((np.indices(shape)[axis] * step for axis, step in enumerate(stride)), start=np.array(0))
        np.testing.assert_array_equal(array, SIX[index] if array.size else np.zeros(shape))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "malformed"),
        (b"\x80\x02}", "malformed"),
        (b"\x80\x02.", "malformed"),
        (b"\x80\x02}K\x01s.", "malformed"),
        (b"\x80\x02](K\x01u.", "malformed"),
        (b"\x80\x02h\x05.", "malformed"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "malformed"),
        (b"\x80\x02}]K\x01s.", "a list as a dictionary key"),
        (b"\x80\x02NQ.", "not a storage"),
        (b"\x80\x02ctorch\nSize\nK\x01\x85R.", "malformed"),
        (b"\x80\x02]q\x00h\x00a.", "contains itself"),
        (b"\x80\x02" + b"]" * 200 + b"a" * 199 + b".", "deeper than 100"),
        (b"\x80\x02ccollections\nOrderedDict\n.", None),
    ],
)
def test_malformed_pickles(tmp_path, data, message):
    path = save(tmp_path / "a.pt", data)
    if message is None:  # a name alone is text, never the thing
        assert read_torch(path) == "collections.OrderedDict"
        return
    with pytest.raises(TorchFileError, match=message):
        read_torch(path)


def test_a_tree_that_multiplies_stays_small(tmp_path):
    """Sixty lists, each twice in the next: 2^60 leaves when walked, sixty objects when shared."""
    data = b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (n, n - 1, n - 1) for n in range(1, 61)) + b"."
    tree = read_torch(save(tmp_path / "a.pt", data))
    assert tree[0] is tree[1]


def test_damaged_pickles_raise_nothing_else(tmp_path):
    with zipfile.ZipFile(GOLDENS / "torch_mixed.pt") as file:
        entries = {name.removeprefix("torch_mixed/"): file.read(name) for name in file.namelist()}
    whole = entries.pop("data.pkl")
    storages = {name.removeprefix("data/"): data for name, data in entries.items() if name.startswith("data/")}
    rng, refused = np.random.default_rng(0), 0
    for _ in range(60):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=rng.integers(1, 4)):
            data[at] = rng.integers(256)
        try:
            read_torch(save(tmp_path / "a.pt", bytes(data), storages))
        except TorchFileError:
            refused += 1
    assert refused > 20


def test_zip_tricks(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", b"\x80\x02N.")
        file.writestr("x/data/0", bytes(1 << 20))
    with pytest.raises(TorchFileError, match="compressed"):
        read_torch(path)
    # An entry that claims more than the whole file, in its header and in the directory.
    save(path, tensor((6,), (1,)), {"0": SIX.tobytes()})
    data = path.read_bytes()
    sizes = struct.pack("<II", SIX.nbytes, SIX.nbytes)
    assert data.count(sizes) == 2
    path.write_bytes(data.replace(sizes, struct.pack("<II", 1 << 30, 1 << 30)))
    with pytest.raises(TorchFileError, match="claim"):
        read_torch(path)


def test_damaged_zip_structure_raises_nothing_else(tmp_path):
    whole = (GOLDENS / "torch_mixed.pt").read_bytes()
    headers = [match.start() for match in re.finditer(b"PK", whole)]
    rng, refused = np.random.default_rng(0), 0
    for _ in range(60):
        data = bytearray(whole)
        data[min(rng.choice(headers) + rng.integers(60), len(data) - 1)] = rng.integers(256)
        (tmp_path / "a.pt").write_bytes(data)
        try:
            read_torch(tmp_path / "a.pt")
        except TorchFileError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a file of torch.save"),
        (b"hello", "not a file of torch.save"),
        (b"x" * 257 + b"ustar\x0000" + bytes(300), "before PyTorch 0.1.10"),
    ],
)
def test_other_formats(tmp_path, data, message):
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    with pytest.raises(TorchFileError, match=message):
        read_torch(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "a.pt")

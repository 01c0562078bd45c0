"""PyTorch files that are cut, changed or not what they seem: each is named, and no other error comes out."""

import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.interop.torch_pickles import SIX, save, tensor
from zigma_jax.interop.torch_file import TorchFileError, read_torch

GOLDENS = Path(__file__).parents[1] / "goldens"


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
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", r"a web page \(HTML\)"),
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

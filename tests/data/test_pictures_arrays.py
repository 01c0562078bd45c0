"""Arrays of pictures: `sample --encode` and `evaluate` take the same ones, and refuse the same ones."""

import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import picture, write
from zigma_jax.data.pictures.pixels import center_crop, to_float, to_uint8
from zigma_jax.data.pictures.sets import of_files, read_pictures
from zigma_jax.errors import DataError

SHAPE = (8, 8, 3)
BYTES = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
FLOATS = to_float(BYTES)


def test_pictures_of_a_directory_in_order_of_name(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 12, 3), np.uint8)
    for name, pixel in zip("ba", pixels, strict=True):
        Image.fromarray(pixel).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "z.png").mkdir()
    samples, labels = read_pictures(tmp_path, SHAPE)
    np.testing.assert_array_equal(samples, [to_float(center_crop(Image.fromarray(p), (8, 8))) for p in pixels[::-1]])
    assert labels is None


def test_what_the_sample_program_wrote(tmp_path):
    """The exact samples, not the pictures of them, nor the grid."""
    Image.new("RGB", (30, 30)).save(tmp_path / "grid.png")
    expected = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", samples=expected, labels=np.array([4, 5, 6]))
    for path in (tmp_path, tmp_path / "samples.npz"):
        samples, labels = read_pictures(path, SHAPE)
        np.testing.assert_array_equal(samples, expected)
        assert labels is not None
        assert labels.tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    "arrays",
    [
        {"samples": BYTES},
        {"samples": FLOATS},
        {"samples": FLOATS.astype(np.float64)},
        {"samples": FLOATS.astype(">f4")},
        {"samples": np.asfortranarray(FLOATS)},
        {"samples": np.asfortranarray(BYTES)},
        {"arr_0": BYTES},
        {"arr_0": BYTES, "arr_1": np.arange(3)},
        {"samples": BYTES, "labels": np.arange(3, dtype=np.uint8), "arr_0": np.zeros(2), "noise": np.zeros(5)},
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_both_programs_read_the_same_pictures(tmp_path, arrays, save):
    save(tmp_path / "a.npz", **arrays)
    (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    samples, labels = read_pictures(tmp_path / "A.NPZ", SHAPE)
    pictures = of_files(tmp_path / "A.NPZ")
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, FLOATS)
    np.testing.assert_array_equal(np.concatenate(list(pictures.batches(2))), BYTES)
    np.testing.assert_array_equal(of_files(tmp_path / "A.NPZ", limit=2).first(2), BYTES[:2])
    known = arrays.get("labels", arrays.get("arr_1"))
    assert (None if labels is None else labels.tolist()) == (None if known is None else [0, 1, 2])


def npy(descr: str, shape: str, data: bytes) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


def zipped(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("samples.npy", content)
    return out.getvalue()


def saved(**arrays) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def corrupt(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved(samples=BYTES.astype(np.int64)), "these are int64; .* bytes uint8"),
        (saved(samples=BYTES.astype(np.int64) % 6), "int64"),
        (saved(samples=BYTES > 100), "bool"),
        (saved(samples=BYTES.astype(np.uint16)), "uint16"),
        (saved(samples=BYTES.astype(np.float32)), r"not from 0 to 255: save bytes"),
        (saved(samples=BYTES.astype(np.float32) / 255), r"none is negative from 0 to 1: of \[0, 1\], save 2 \* x - 1"),
        (saved(samples=np.where(FLOATS > 0.9, np.nan, FLOATS)), "floats must be finite"),
        (saved(samples=np.where(FLOATS > 0.9, np.inf, FLOATS)), "floats must be finite"),
        (saved(samples=FLOATS.astype(np.complex64)), "holds complex64, where numbers are wanted"),
        (saved(samples=np.array([[["a"] * 3] * 8] * 8)), "holds <U1"),
        (saved(samples=np.array([BYTES[0], None], dtype=object)), "Python objects, which are never unpickled"),
        (saved(samples=BYTES[:0]), r"of shape \(0, 8, 8, 3\)"),
        (saved(samples=np.float32(0.5)), r"of shape \(\)"),
        (saved(noise=BYTES), "there is no array `samples`, but noise"),
        (saved(), "there is no array `samples`, but none"),
        (saved(samples=BYTES, labels=np.arange(2)), r"3 samples, and labels of shape \(2,\)"),
        (saved(samples=BYTES, labels=np.arange(3)[:, None]), r"labels of shape \(3, 1\)"),
        (saved(samples=BYTES, labels=np.int64(3)), "labels of shape"),
        (saved(samples=BYTES, labels=np.arange(3) + 0.5), "must be whole numbers .*: they are float64, such as .0.5"),
        (saved(samples=BYTES, labels=np.arange(3) > 1), "they are bool"),
        (saved(samples=BYTES, labels=np.array([0, 1, -1])), "there is -1"),
        (saved(samples=BYTES, labels=np.array(["cat", "dog", "cat"])), "labels.npy` holds <U3"),
        (saved(arr_0=BYTES, arr_1=np.arange(2)), "`arr_1` must be whole numbers"),
        (b"these are no numbers\n", "no .npz, but text"),
        (b"", "an empty file"),
        (b"<!doctype html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (picture(1), "no .npz, but bytes"),
        (saved(samples=BYTES)[:-200], "no .npz, but a zip archive, damaged"),
        (corrupt(saved(samples=BYTES)), r"a damaged .npz \(BadZipFile: Bad CRC"),
        (zipped(b"no array"), "a damaged .npz"),
        (zipped(npy("'|u1'", "(4, 8, 8, 3)", BYTES.tobytes())), r"says that it is \(4, 8, 8, 3\) uint8, 768 bytes"),
        (zipped(npy("'|u1'", f"({10**12}, 8, 8, 3)", BYTES.tobytes())), "has 576: damaged"),
        (zipped(npy("'|u1'", "(-3, 8, 8, 3)", BYTES.tobytes())), "damaged"),
        (zipped(npy("__import__('os').abort()", "(3, 8, 8, 3)", BYTES.tobytes())), "a damaged .npz"),
    ],
)
def test_both_programs_refuse_the_same(tmp_path, content, message):
    path = write(tmp_path, {"a.npz": content}) / "a.npz"
    for read in (lambda: read_pictures(path, SHAPE), lambda: of_files(path)):
        with pytest.raises(DataError, match=message) as error:
            read()
        assert str(error.value).startswith(str(path))
        assert "pickle" not in str(error.value).replace("never unpickled", "")


def test_a_single_array_is_named(tmp_path):
    np.save(tmp_path / "a.npy", BYTES)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"no .npz, but a single array \(.npy\)"):
        of_files(tmp_path / "a.npz")


def test_latents_may_be_any_finite_floats(tmp_path):
    latents = np.random.default_rng(0).normal(size=(2, 4, 4, 4)) * 20
    np.savez(tmp_path / "a.npz", samples=latents)
    np.testing.assert_array_equal(read_pictures(tmp_path / "a.npz", (4, 4, 4))[0], latents.astype(np.float32))
    for wrong in (np.where(latents > 30, np.nan, latents), latents.astype(np.uint8)):
        np.savez(tmp_path / "a.npz", samples=wrong)
        with pytest.raises(DataError, match="floats"):
            read_pictures(tmp_path / "a.npz", (4, 4, 4))


def test_samples_beyond_the_interval_are_clipped_as_pictures(tmp_path):
    samples = FLOATS * 1.5
    np.savez(tmp_path / "a.npz", samples=samples)
    np.testing.assert_array_equal(of_files(tmp_path / "a.npz").first(3), to_uint8(samples))
    np.testing.assert_array_equal(read_pictures(tmp_path / "a.npz", SHAPE)[0], samples)


def test_what_is_neither_is_refused(tmp_path):
    with pytest.raises(DataError, match="there are no pictures in it"):
        read_pictures(tmp_path, SHAPE)
    with pytest.raises(DataError, match=r"nowhere: neither a directory of pictures nor an \.npz"):
        read_pictures(tmp_path / "nowhere", SHAPE)
    np.savez(tmp_path / "a.npz", samples=np.zeros((3, 9, 9, 3)))
    with pytest.raises(DataError, match=r"samples of shape \(3, 9, 9, 3\), where \(n, 8, 8, 3\) are wanted"):
        read_pictures(tmp_path / "a.npz", SHAPE)
    Image.new("RGB", (30, 30)).save(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"and \(2, 8, 8, 3\) is wanted; give an \.npz"):
        read_pictures(tmp_path, (2, *SHAPE))

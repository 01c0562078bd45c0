"""UCF101 from the archives of its authors, made up in their layout: classes, groups, lists, a .rar and a .zip."""

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.data.movies import encode, numbered, numbers
from zigma_jax.data.config import DataConfig
from zigma_jax.data.pipeline import make_dataset
from zigma_jax.data.sources import open_source
from zigma_jax.errors import ConfigError, DataError

ACTIONS = ("ApplyEyeMakeup", "Archery", "YoYo")
LISTS = "UCF101TrainTestSplits-RecognitionTask.zip"


def clips() -> dict[str, bytes]:
    """Two groups of two clips for each action, as their paths in the archive."""
    movie = encode(numbered(10), codec="mpeg4", container="avi", rate=25, bit_rate=2_000_000)
    return {
        f"UCF-101/{action}/v_{action}_g{group:02}_c{clip:02}.avi": movie
        for action in ACTIONS
        for group in (1, 8)
        for clip in (1, 2)
    }


def write_lists(root: Path, **changes: str) -> None:
    names = [name.removeprefix("UCF-101/") for name in clips()]
    texts = {"classInd.txt": "\r\n".join(f"{number} {action}" for number, action in enumerate(ACTIONS, 1))}
    for number in (1, 2, 3):
        tested = "_g01_" if number == 1 else "_g08_"
        texts[f"testlist{number:02}.txt"] = "\r\n".join(name for name in names if tested in name)
        texts[f"trainlist{number:02}.txt"] = "\r\n".join(
            f"{name} {ACTIONS.index(name.split('/')[0]) + 1}" for name in names if tested not in name
        )
    with zipfile.ZipFile(root / LISTS, "w") as archive:
        for name, text in (texts | changes).items():
            archive.writestr(f"ucfTrainTestlist/{name}", text)


def write_rar(path: Path, files: dict[str, bytes]) -> None:
    """A .rar of version 3 whose members are stored."""

    def block(kind: int, flags: int, body: bytes, data: bytes = b"") -> bytes:
        head = struct.pack("<BHH", kind, flags, 7 + len(body)) + body
        return struct.pack("<H", zlib.crc32(head) & 0xFFFF) + head + data

    content = b"Rar!\x1a\x07\x00" + block(0x73, 0, bytes(6))
    for name, data in files.items():
        encoded = name.replace("/", "\\").encode()
        body = struct.pack(
            "<LLBLLBBHL", len(data), len(data), 3, zlib.crc32(data), 0x5B7D0000, 29, 0x30, len(encoded), 0o100644
        )
        content += block(0x74, 0x8000, body + encoded, data)
    path.write_bytes(content + block(0x7B, 0x4000, b""))


def config(root: Path, **options) -> DataConfig:
    place = {"folder": str(root), "data_dir": str(root / "data")}
    return DataConfig(**{"name": "ucf101", "image_size": (48, 64), "frames": 4, **place, **options})


@pytest.mark.parametrize("kind", ["rar", "zip", "unpacked"])
def test_the_archives_as_they_are_given_out(tmp_path, kind):
    write_lists(tmp_path)
    if kind == "rar":
        write_rar(tmp_path / "UCF101.rar", clips())
    elif kind == "zip":
        with zipfile.ZipFile(tmp_path / "UCF-101.zip", "w") as archive:
            for name, data in clips().items():
                archive.writestr(name, data)
    else:
        for name, data in clips().items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
    train, test = open_source(config(tmp_path)), open_source(config(tmp_path, split="test"))
    assert train.info.class_names == ACTIONS
    assert (len(train), len(test)) == (6, 6)
    assert [train.captions(index) for index in (0, 2, 4)] == [["apply eye makeup"], ["archery"], ["yo yo"]]
    batch = make_dataset(config(tmp_path), global_batch=6, num_classes=3).batch(0)
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1, 2, 2]
    assert all((np.diff(numbers(clip)) == 1).all() for clip in batch["video"])
    assert len(open_source(config(tmp_path, split="train+test"))) == 12
    if kind == "rar":
        second = open_source(config(tmp_path, name="ucf101/2"))
        assert second.info.name != train.info.name
        assert len(second) == 6


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"needs data\.folder"):
        open_source(DataConfig(name="ucf101", frames=4))
    with pytest.raises(DataError, match=r"there is neither UCF101TrainTestSplits.*crcv\.ucf\.edu"):
        open_source(config(tmp_path))
    write_lists(tmp_path)
    with pytest.raises(DataError, match=r"neither UCF101\.zip nor UCF101\.rar nor UCF101/"):
        open_source(config(tmp_path))
    (tmp_path / "UCF101.rar").write_bytes(b"<html>moved</html>")
    with pytest.raises(DataError, match="no whole rar"):
        open_source(config(tmp_path))
    write_rar(tmp_path / "UCF101.rar", clips())
    write_lists(tmp_path, **{"trainlist01.txt": "Juggling/v_Juggling_g01_c01.avi 4"})
    with pytest.raises(DataError, match=r"Juggling.* is in no class"):
        open_source(config(tmp_path))
    write_lists(tmp_path, **{"classInd.txt": "Archery 1"})
    with pytest.raises(DataError, match=r"classInd\.txt"):
        open_source(config(tmp_path))

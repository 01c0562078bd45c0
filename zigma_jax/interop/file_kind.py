"""What a file of weights is, by its content: names and suffixes are only what somebody chose."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import BinaryIO, Literal

from zigma_jax.errors import WeightsError

LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # PyTorch before 1.6


def file_kind(path: str | os.PathLike[str]) -> Literal["torch", "safetensors"]:
    """Which reader a file of weights needs.

    Raises:
        WeightsError: there is no such file, it is a directory, empty, a Git LFS pointer, a web page, or something else.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path}: a directory, not a file of weights")
    try:
        with path.open("rb") as file:
            kind = _kind(file)
            reason = None if kind else why_not_weights(file)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    if kind is None:
        raise WeightsError(f"{path}: {reason}")
    return kind


def _kind(file: BinaryIO) -> Literal["torch", "safetensors"] | None:
    head = file.read(512)
    if head.startswith(LEGACY_MAGIC) or head[257:262] == b"ustar":
        return "torch"
    if head.startswith(b"PK\x03\x04"):
        try:
            names = zipfile.ZipFile(file).namelist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            return "torch"  # the reader says what is damaged
        return "torch" if any(name.endswith("data.pkl") for name in names) else None
    # The length of a header, which is JSON.
    if len(head) > 8 and head[8:].lstrip()[:1] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:
        return "safetensors"
    return None


def why_not_weights(file: BinaryIO) -> str:
    """What the file is instead of weights, in words."""
    file.seek(0)
    head = file.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if not head:
        return "an empty file (0 bytes); copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; run `git lfs pull`, or download the file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "a web page (HTML), not weights; the download went wrong, or needs a login or a licence to be accepted"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive without data.pkl: not a file of torch.save (an .npz?)"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file; only PyTorch files and safetensors can be read"
    if head.startswith(b"GGUF"):
        return "a GGUF file; only PyTorch files and safetensors can be read"
    if head[:1] == b"\x80":
        return "a bare pickle, not a file of torch.save; save its state dict with torch.save where it was made"
    if head.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"BZh")):
        return "a compressed file; unpack it first"
    return "not a file of torch.save (no zip archive), and not safetensors"

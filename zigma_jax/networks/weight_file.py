"""Files of weights: a network takes its tensors by name and shape, and what did not fit is told all at once."""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from jaxtyping import Float

from zigma_jax.errors import WeightsError
from zigma_jax.interop.torch_file import read_torch
from zigma_jax.networks.fingerprints import FingerprintMemory

_DTYPES = tuple(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))
_MOST = 8  # tensors named of each kind of problem; a file of another network has thousands
# In files, and of no use to inference: counters of batch norms, and the numbers 0, 1, 2, … of older transformers.
_IGNORED = ("num_batches_tracked", "position_ids")


class _Tensor(NamedTuple):
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class WeightFile:
    """The tensors of `.safetensors` or PyTorch files, by name; of PyTorch's nothing is ever executed.

    A tensor of a safetensors file is read when it is taken; a PyTorch file is read as a whole.

    Args:
        paths: one file, or several that hold one network together (shards).
        place: what to call them in errors; None: the first file's path.
        rename: of a tensor's name and its file's path makes the name by which it is taken, told in errors and
            fingerprinted; for files that call the same tensors otherwise. None: names are taken as they are.

    Raises:
        WeightsError: not a readable safetensors file, not a flat dictionary of arrays, or a tensor in two files; a
            truncated file, a web page or a Git LFS pointer is called what it is.
        TorchFileError: a damaged or unsafe PyTorch file.
        FileNotFoundError: no such file.
    """

    def __init__(
        self,
        *paths: str | os.PathLike[str],
        place: str | None = None,
        rename: Callable[[str, Path], str] | None = None,
    ):
        self.path = place or os.fspath(paths[0])
        self._memory = FingerprintMemory([Path(path) for path in paths])
        self._tensors: dict[str, _Tensor] = {}
        for path in paths:
            tensors = _open(os.fspath(path))
            if rename is not None:
                tensors = {rename(name, Path(path)): tensor for name, tensor in tensors.items()}
            if twice := sorted(tensors.keys() & self._tensors.keys()):
                raise WeightsError(f"{os.fspath(path)}: tensor {twice[0]} is in another file of {self.path} as well")
            self._tensors |= tensors
        self._taken: dict[str, tuple[int, ...]] = {}
        self._asked: set[str] = set()
        self._problems: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor, without reading it; None where there is no such tensor."""
        return self._tensors[name].shape if name in self._tensors else None

    def take(self, name: str, *shape: int) -> Float[np.ndarray, "..."]:
        """The tensor in float32; zeros in its place where it does not fit, which `check` then reports."""
        self._asked.add(name)
        if name not in self._tensors:
            return self._refuse(f"missing: {name} {shape}", shape)
        found = self._tensors[name].shape
        if found != shape:
            return self._refuse(f"wrong shape: {name} is {found}, the network needs {shape}", shape)
        tensor = self._tensors[name].read()
        if tensor.dtype not in _DTYPES:
            return self._refuse(f"wrong dtype: {name} is {tensor.dtype}, not a floating-point number", shape)
        values = _float32(tensor)
        if not np.isfinite(values).all():
            return self._refuse(f"not finite: {name} holds NaN or infinity", shape)
        self._taken[name] = shape
        return values

    def leave(self, *prefixes: str) -> None:
        """Sets aside the tensors whose names start so: they belong to another network in the same file."""
        self._asked |= {name for name in self._tensors if name.startswith(prefixes)}

    def check(self) -> None:
        """Raises WeightsError naming what did not fit, and what nobody took."""
        rest = [name for name in self._tensors if name not in self._asked and not name.endswith(_IGNORED)]
        problems = self._problems + [f"unexpected: {name} {self._tensors[name].shape}" for name in rest]
        if not problems:
            return
        kinds: dict[str, list[str]] = {}
        for problem in problems:
            kinds.setdefault(problem.partition(":")[0], []).append(problem)
        lines = []
        for kind in kinds.values():
            lines += kind[:_MOST] + [f"… and {len(kind) - _MOST} more"] * (len(kind) > _MOST)
        raise WeightsError(f"{self.path} does not fit the network ({len(problems)} tensors):\n  " + "\n  ".join(lines))

    def fingerprint(self) -> str:
        """sha256 (hex) of the tensors taken, as float32, with their names and shapes, in the names' order.

        So it says what a network computes with: the format of a file, and other networks in it, make no difference.
        It is computed once and remembered as long as the files are unchanged.
        """
        taken = sorted(self._taken.items())
        key = hashlib.sha256(json.dumps(taken).encode()).hexdigest()
        known = self._memory.recall(key)
        if known is not None:
            return known
        digest = hashlib.sha256()
        for name, shape in taken:
            digest.update(f"{name}{shape}".encode())
            digest.update(_float32(self._tensors[name].read()).astype("<f4", copy=False).data)
        self._memory.remember(key, digest.hexdigest())
        return digest.hexdigest()

    def _refuse(self, problem: str, shape: tuple[int, ...]) -> np.ndarray:
        self._problems.append(problem)
        return np.zeros(shape, np.float32)


def what_it_is(head: bytes) -> str | None:
    """What a file that begins so really is, if it is one of the things that downloads leave in place of weights."""
    start = head.lstrip().lower()
    if not head:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or download the file"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file itself: download it from the page's own download link"
    return None


def _float32(tensor: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # of float64; then it is not finite
        return np.ascontiguousarray(tensor, np.float32).reshape(tensor.shape)


def _open(path: str) -> dict[str, _Tensor]:
    with open(path, "rb") as file:
        head = file.read(512)
    if other := what_it_is(head):
        raise WeightsError(f"{path}: {other}")
    if Path(path).suffix == ".safetensors" or head[8:9] == b"{":
        return _open_safetensors(path)
    tensors: Any = read_torch(path)
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]  # a training program's checkpoint, which holds more than the weights
    if not isinstance(tensors, Mapping) or not all(isinstance(value, np.ndarray) for value in tensors.values()):
        raise WeightsError(f"{path}: not a state dict (names and tensors, nothing nested)")
    return {str(name): _Tensor(value.shape, lambda value=value: value) for name, value in tensors.items()}


def _open_safetensors(path: str) -> dict[str, _Tensor]:
    try:
        file = safetensors.safe_open(path, framework="numpy")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    except safetensors.SafetensorError as error:
        reason = _truncated(path) or f"not a readable safetensors file ({error})"
        raise WeightsError(f"{path}: {reason}") from error
    return {name: _Tensor(shape, partial(file.get_tensor, name)) for name, shape in shapes.items()}


def _truncated(path: str) -> str | None:
    """Says so if the file ends before its header says it does."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < size else {}
            end = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (struct.error, ValueError, LookupError, TypeError, AttributeError):
            return None
    return f"truncated: {size} bytes of {end}; download it again" if size < end else None

"""A file of weights: a network takes its tensors by name and shape, and what did not fit is told all at once."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from jaxtyping import Float

from zigma_jax.interop.torch_file import read_torch

_DTYPES = tuple(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))
_MOST = 12  # problems named; a file of another network has thousands


class WeightFile:
    """The tensors of a `.safetensors` or PyTorch file, by name.

    Raises:
        ValueError: not a readable safetensors file, or not a flat dictionary of arrays.
        TorchFileError: a damaged or unsafe PyTorch file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        if Path(path).suffix == ".safetensors":
            tensors: Any = _read_safetensors(self.path)
        else:
            tensors = read_torch(path)
        if not isinstance(tensors, Mapping) or not all(isinstance(value, np.ndarray) for value in tensors.values()):
            raise ValueError(f"{self.path}: not a state dict (names and tensors, nothing nested)")
        self.tensors: Mapping[str, np.ndarray] = tensors
        self.taken: dict[str, np.ndarray] = {}
        self.asked: set[str] = set()
        self.problems: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str, *shape: int) -> Float[np.ndarray, "..."]:
        """The tensor in float32; zeros in its place where it does not fit, which `check` then reports."""
        self.asked.add(name)
        tensor = self.tensors.get(name)
        if tensor is None:
            return self._refuse(f"missing: {name} {shape}", shape)
        if tensor.shape != shape:
            return self._refuse(f"wrong shape: {name} is {tensor.shape}, the network needs {shape}", shape)
        if tensor.dtype not in _DTYPES:
            return self._refuse(f"wrong dtype: {name} is {tensor.dtype}, not a floating-point number", shape)
        values = np.ascontiguousarray(tensor, np.float32).reshape(shape)
        if not np.isfinite(values).all():
            return self._refuse(f"not finite: {name} holds NaN or infinity", shape)
        self.taken[name] = values
        return values

    def check(self, ignored: tuple[str, ...] = ("num_batches_tracked",)) -> None:
        """Raises ValueError naming what did not fit, and what nobody took except names that end in `ignored`."""
        rest = [name for name in self.tensors if name not in self.asked and not name.endswith(ignored)]
        if problems := self.problems + [f"unexpected: {name} {self.tensors[name].shape}" for name in rest]:
            more = [f"… and {len(problems) - _MOST} more"] if len(problems) > _MOST else []
            raise ValueError(
                f"{self.path} does not fit the network ({len(problems)} tensors):\n  "
                + "\n  ".join(problems[:_MOST] + more)
            )

    def fingerprint(self) -> str:
        """sha256 (hex) of the tensors taken, as float32, with their names and shapes, in the names' order."""
        digest = hashlib.sha256()
        for name in sorted(self.taken):
            values = self.taken[name]
            digest.update(f"{name}{values.shape}".encode())
            digest.update(values.astype("<f4", copy=False).data)
        return digest.hexdigest()

    def _refuse(self, problem: str, shape: tuple[int, ...]) -> np.ndarray:
        self.problems.append(problem)
        return np.zeros(shape, np.float32)


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error

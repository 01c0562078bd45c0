"""Writes tests/goldens/torch_odd.pt: what training programs put beside the weights, and every kind of tensor.

Run once, with torch 2.13 and numpy 2.4:

    python tests/interop/make_torch_odd.py
"""
# pyright: reportMissingImports=false

import argparse
import collections
import datetime
import enum
import pathlib
import random
import sys
import types
from pathlib import Path

import numpy as np
import torch

GOLDENS = Path(__file__).parents[1] / "goldens"
lib = types.ModuleType("somebodys_program")  # its classes cannot be imported by whoever reads the file
sys.modules[lib.__name__] = lib


def ours(cls):
    cls.__module__, cls.__qualname__ = lib.__name__, cls.__name__
    setattr(lib, cls.__name__, cls)
    return cls


@ours
class Settings(dict):
    """Arguments, as many programs keep them."""


@ours
class Mode(enum.Enum):
    FAST = 1


@ours
class Trainer:
    def __init__(self):
        self.itself, self.steps = self, 3


@ours
class Mine(torch.Tensor):
    pass


@ours
def schedule(step):
    return step


def main() -> None:
    plain = torch.arange(6, dtype=torch.float32)
    marked = plain.clone()
    marked.note = "an attribute"
    parameter = torch.nn.Parameter(plain.clone())
    parameter.is_shared = True
    out = {
        "set": {1, 2},
        "frozenset": frozenset(("a", "b")),
        "counter": collections.Counter("aab"),
        "tuple_key": {(1, "a"): 2, torch.float32: 3},
        "defaultdict": collections.defaultdict(list, a=[1]),
        "deque": collections.deque([1, 2], 5),
        "complex": 1 + 2j,
        "bytes": b"\x00\xff",
        "bytearray": bytearray(b"ab"),
        "date": datetime.date(2026, 1, 2),
        "path": pathlib.PurePosixPath("a/b"),
        "namespace": argparse.Namespace(depth=3),
        "settings": Settings(depth=4, inner=Settings(a=1)),
        "mode": Mode.FAST,
        "trainer": Trainer(),
        "function": schedule,
        "array": np.arange(6, dtype=np.int64).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
        "objects": np.array(["a", None], object),
        "texts": np.array(["a", "bc"]),
        "numpy_scalar": np.float32(1.5),
        "numpy_bool": np.bool_(True),
        "numpy_date": np.datetime64("2026-01-02"),
        "python_random": random.Random(0).getstate()[0],
        "numpy_random": np.random.RandomState(0).get_state(),
        "generator": np.random.default_rng(0),
        "torch_random": torch.get_rng_state()[:16].clone(),
        "marked": marked,
        "parameter": parameter,
        "buffer": torch.nn.Buffer(plain.clone()),
        "subclass": plain.clone().as_subclass(Mine),
        "expanded": torch.ones(1).expand(2, 3),
        "transposed": plain.reshape(2, 3).t(),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "meta": torch.empty(2, 3, device="meta"),
        "sparse": torch.eye(2).to_sparse(),
        "csr": torch.eye(2).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "float8": plain.to(torch.float8_e4m3fn),
        "complex32": torch.zeros(2, dtype=torch.complex32),
        "storage": plain.clone().untyped_storage(),
        "typed_storage": torch.FloatStorage([1, 2]),
        "size": torch.Size((2, 3)),
        "device": torch.device("cuda", 1),
        "layout": torch.strided,
    }
    torch.save(out, GOLDENS / "torch_odd.pt")


if __name__ == "__main__":
    main()

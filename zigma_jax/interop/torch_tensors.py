"""What the pickle of a PyTorch file is made of: storages, and tensors that are views of them, all checked."""

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from zigma_jax.interop import inert_pickle
from zigma_jax.interop.inert_pickle import Record, TorchFileError
from zigma_jax.interop.torch_writer import STORAGES

# Dtypes without a storage class of their own are saved as bytes and named beside them.
_DTYPES = {
    "torch.uint16": np.dtype("u2"),
    "torch.uint32": np.dtype("u4"),
    "torch.uint64": np.dtype("u8"),
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
_DTYPE_NAMES = frozenset(
    f"torch.{name}"
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
)
INERT = frozenset(
    (
        *inert_pickle.CONFIG_NAMES,
        *(f"torch.{name}" for name in STORAGES),
        "torch.storage.UntypedStorage",
        *_DTYPES,
        *_DTYPE_NAMES,
        "numpy.dtype",
    )
)
_MOST = 1 << 48  # elements: no file is larger, and NumPy can count the bytes of an empty array


@dataclass(frozen=True)
class Storage:
    """Numbers in the file, by the key under which tensors refer to them."""

    key: str
    dtype: np.dtype[Any]
    size: int  # elements


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def view(tensor: Any, buffer: Callable[[Storage], np.ndarray]) -> np.ndarray:
    """The tensor over its storage's bytes, which `buffer` provides."""
    if not isinstance(tensor, Tensor):
        raise TorchFileError(f"a {type(tensor).__name__} outside a tensor")
    storage, size = tensor.storage, tensor.storage.dtype.itemsize
    return np.ndarray(
        tensor.shape,
        storage.dtype,
        buffer=buffer(storage),
        offset=tensor.offset * size if math.prod(tensor.shape) else 0,
        strides=[step * size for step in tensor.stride],
    )


def storage_dtype(kind: inert_pickle.Global) -> np.dtype[Any]:
    """The numbers in a storage of the class that the file names."""
    name = kind.name.removeprefix("torch.")
    if name == "storage.UntypedStorage":
        return np.dtype("u1")
    if name not in STORAGES:
        raise TorchFileError(f"{kind.name} is not a storage")
    return STORAGES[name]


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """A view of a storage, its bounds checked before anything is read."""
    del requires_grad, hooks, metadata
    if not isinstance(storage, Storage):
        raise TorchFileError("malformed pickle: a tensor without a storage")
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= 64):
        raise TorchFileError("malformed pickle: a tensor's shape and strides are not tuples of one length up to 64")
    if not all(type(n) is int and 0 <= n < _MOST for n in (offset, *shape, *stride)):
        raise TorchFileError("malformed pickle: a tensor's offset, shape or strides are not numbers below 2^48")
    if math.prod(n or 1 for n in shape) >= _MOST:
        raise TorchFileError(f"malformed pickle: a tensor's shape {shape} has 2^48 elements or more")
    count = math.prod(shape)
    end = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1 if count else 0
    # A stride of 0 would make a large array of one number: no checkpoint has that.
    if max(end, count) > storage.size:
        what = f"a tensor at offset {offset} of shape {shape} with strides {stride}"
        raise TorchFileError(f"{what} does not fit entry data/{storage.key} of {storage.size} elements")
    return Tensor(storage, offset, shape, stride)


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Tensor:
    named = _DTYPES.get(dtype.name) if isinstance(dtype, inert_pickle.Global) else None
    if named is None or not isinstance(storage, Storage) or storage.size % named.itemsize:
        raise TorchFileError("malformed pickle: a tensor of unknown dtype")
    storage = Storage(storage.key, named, storage.size // named.itemsize)
    return _rebuild_tensor(storage, offset, shape, stride, requires_grad, hooks, metadata)


def _rebuild_parameter(tensor: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    del requires_grad, hooks, state
    return tensor


def _ordered_dict() -> OrderedDict[Any, Any]:
    return OrderedDict()


def _default_dict(factory: Any = None) -> dict[Any, Any]:
    del factory
    return {}


def _device(kind: str, index: int | None = None) -> str:
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise TorchFileError("malformed pickle: a device that is not a name and a number")
    return kind if index is None else f"{kind}:{index}"


def _size(shape: Any = ()) -> tuple[Any, ...]:
    return tuple(shape)


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise TorchFileError("malformed pickle: bytes in an unknown encoding")
    return text.encode("latin1")


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.name == "numpy.dtype" and dtype.args else None
    if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]", code) or not isinstance(data, bytes):
        raise TorchFileError("malformed pickle: a NumPy scalar of unknown dtype")
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "<"
    kind = np.dtype(code).newbyteorder(">" if order == ">" else "<")
    if len(data) != kind.itemsize:
        raise TorchFileError(f"malformed pickle: a NumPy scalar {code} of {len(data)} bytes")
    return np.frombuffer(data, kind)[0].item()


CONSTRUCT = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "_codecs.encode": _encode,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}

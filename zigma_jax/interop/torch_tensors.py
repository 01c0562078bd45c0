"""What the pickle of a PyTorch file is made of: storages, and tensors that are views of them, all checked."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from zigma_jax.interop.inert_pickle import Global, Record, TorchFileError, check_key
from zigma_jax.interop.plain_data import numpy_dtype
from zigma_jax.interop.torch_writer import STORAGES

# Dtypes without a storage class of their own are saved as bytes and named beside them.
_DTYPES = {
    "torch.uint16": np.dtype("u2"),
    "torch.uint32": np.dtype("u4"),
    "torch.uint64": np.dtype("u8"),
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "torch.float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "torch.float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "torch.float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}
_QUANTIZED = {"QInt8Storage": np.dtype("i1"), "QInt32Storage": np.dtype("i4")}
_MOST_REPEATED = 1 << 20  # elements of a tensor that repeats its numbers, as `expand` makes them
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
    """The tensor over its storage's bytes, which `buffer` provides; a storage by itself is all of its numbers."""
    if isinstance(tensor, Storage):
        tensor = Tensor(tensor, 0, (tensor.size,), (1,))
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


def storage_dtype(kind: Global) -> np.dtype[Any]:
    """The numbers in a storage of the class that the file names; bytes, if it is not a storage of numbers."""
    name = kind.name.removeprefix("torch.").removeprefix("cuda.")
    return STORAGES.get(name, _QUANTIZED.get(name, np.dtype("u1")))


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor | Record:
    """A view of a storage, its bounds checked before anything is read."""
    del requires_grad, hooks
    if isinstance(metadata, dict) and any(metadata.values()):  # its numbers are to be conjugated or negated
        return Record(f"a tensor with {metadata}", (storage, offset, shape, stride))
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
    # A stride of 0 makes any number of elements of one: no checkpoint has many of that.
    if end > storage.size or count > max(storage.size, _MOST_REPEATED):
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
) -> Tensor | Record:
    named = _DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
    if named is None and isinstance(dtype, Global):  # float4, int2 and the like: kept, and refused where it is needed
        return Record("torch._utils._rebuild_tensor_v3", (storage, offset, shape, stride, dtype))
    if named is None or not isinstance(storage, Storage) or storage.size % named.itemsize:
        raise TorchFileError("malformed pickle: a tensor of unknown dtype")
    storage = Storage(storage.key, named, storage.size // named.itemsize)
    return _rebuild_tensor(storage, offset, shape, stride, requires_grad, hooks, metadata)


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor of a subclass, or with attributes of its own: the tensor alone."""
    del state
    if isinstance(function, Global) and function.name in _REBUILD and isinstance(args, tuple):
        return _REBUILD[function.name](*args)
    return Record("torch._tensor._rebuild_from_type_v2", (function, kind, args))


def _ordered_dict(items: Any = ()) -> OrderedDict[Any, Any]:
    """Python 2 gives a list of pairs."""
    if isinstance(items, dict):
        items = items.items()
    return OrderedDict((check_key(key), value) for key, value in items)


def _default_dict(factory: Any = None, items: Any = None) -> dict[Any, Any]:
    del factory
    return dict(_ordered_dict(items or ()))


def _counter(counts: Any = None) -> dict[Any, Any]:
    return dict(_ordered_dict(counts or ()))


def _list(items: Any = (), most: Any = None) -> list[Any]:
    del most
    return list(items) if isinstance(items, list | tuple) else []


def _complex(real: Any = 0.0, imaginary: Any = 0.0) -> Any:
    numbers = isinstance(real, int | float) and isinstance(imaginary, int | float)
    return complex(real, imaginary) if numbers else Record("builtins.complex", (real, imaginary))


def _set(items: Any = ()) -> set[Any]:
    return {check_key(item) for item in items}


def _device(kind: str, index: int | None = None) -> str:
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise TorchFileError("malformed pickle: a device that is not a name and a number")
    return kind if index is None else f"{kind}:{index}"


def _size(shape: Any = ()) -> tuple[Any, ...]:
    return tuple(shape)


def _encode(text: Any, encoding: Any) -> Any:
    if encoding != "latin1" or not isinstance(text, str):
        return Record("_codecs.encode", (text, encoding))
    return text.encode("latin1")


def _bytes(*args: Any) -> Any:
    return args[0] if args and isinstance(args[0], bytes) else Record("builtins.bytearray", args) if args else b""


def _numpy_scalar(dtype: Any, data: Any = None) -> Any:
    kind = numpy_dtype(dtype)
    if kind is None or not isinstance(data, bytes):
        return Record("numpy._core.multiarray.scalar", (dtype, data))
    if len(data) != kind.itemsize:
        raise TorchFileError(f"malformed pickle: a NumPy scalar {kind} of {len(data)} bytes")
    return np.frombuffer(data, kind)[0].item()


_REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _rebuild_parameter,
}
# What may be called. Other names give records: sparse, quantized and nested tensors among them.
CONSTRUCT: dict[str, Callable[..., Any]] = {
    **_REBUILD,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "collections.Counter": _counter,
    "collections.deque": _list,
    "builtins.complex": _complex,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encode,
    **{f"torch.jit._pickle.build_{kind}list": _list for kind in ("bool", "double", "int", "tensor")},  # TorchScript's
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}

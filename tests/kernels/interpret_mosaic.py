"""Runs the Mosaic GPU kernels of the selective scan on any machine, in numpy.

Pallas' interpreter of GPU kernels takes no inline PTX, and its general one compiles for ten seconds a shape. So here
the kernels' own Python is run as it stands: jax.numpy is numpy, a loop is a loop, references are arrays, the grid and
its warpgroups are walked one by one, and each function of `mosaic_lanes` is replaced by one that does to the 128 lanes
at once what its docstring says. Checked on the way: indices; that results are written once; that lanes which exchange
numbers through shared memory wait for one another. What was never written reads as NaN.

Not checked, and left to tests on a GPU: that the PTX does what the docstrings say.
"""

import inspect
import itertools
import threading
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from zigma_kernels import mosaic_lanes
from zigma_kernels.mosaic_lanes import LANES
from zigma_kernels.selective_scan import mosaic_backward, mosaic_carry, mosaic_forward, mosaic_gpu, mosaic_plan

WARPS, WARP = 4, 32
NUMPY = ("abs", "clip", "exp", "exp2", "maximum", "minimum", "where")
_one_at_a_time = threading.Lock()
_here = {}  # the place in the grid: axis name -> index


def interpret(monkeypatch):
    """Lets the kernels run in numpy until the test ends."""
    stand_ins = {
        "jnp": _Replaced(jnp, **{name: getattr(np, name) for name in NUMPY}),
        "lax": _Replaced(lax, axis_index=_here.__getitem__, fori_loop=_loop, rem=np.fmod),
        "pl": _Replaced(pl, when=lambda condition: lambda body: body() if condition else None),
        "plgpu": _Replaced(plgpu, kernel=_kernel),
    }
    for module in (mosaic_plan, mosaic_carry, mosaic_forward, mosaic_backward):
        for name in stand_ins.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, stand_ins[name])
    for function in LANE_FUNCTIONS:
        theirs = inspect.signature(getattr(mosaic_lanes, function.__name__))
        assert list(inspect.signature(function).parameters) == list(theirs.parameters)
        monkeypatch.setattr(mosaic_lanes, function.__name__, function)
    # What was traced with the kernels for GPUs must not be found again, nor what is traced now later.
    monkeypatch.setattr(mosaic_gpu, "_scan", mosaic_gpu._scan.__wrapped__)


class _Replaced(SimpleNamespace):
    """A module, but for the functions given."""

    def __init__(self, module, **functions):
        super().__init__(**functions)
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)


def _loop(start, stop, body, carry):
    for i in range(start, stop):
        carry = body(i, carry)
    return carry


def _kernel(body, out_type, grid, grid_names, num_threads, thread_name, scratch_types, compiler_params):
    """`plgpu.kernel`, as far as the scan uses it."""
    del compiler_params
    axes = dict(zip(grid_names, grid, strict=True)) | {thread_name: num_threads}

    def run(*operands):
        outs = [Result(_unwritten(x)) for x in out_type]
        refs = [*(Ref(np.asarray(x)) for x in operands), *outs]
        for index in itertools.product(*map(range, axes.values())):
            with _one_at_a_time:  # devices have threads of their own
                _here.update(zip(axes, index, strict=True))
                Shared.start()
                body(*refs, *(Shared(_unwritten(x)) for x in scratch_types))
                assert Shared.copies == [[]], "a kernel ends while copies are on their way"
        return tuple(ref.array for ref in outs)

    return lambda *operands: jax.pure_callback(run, out_type, *operands)


def _unwritten(x):
    """NaN, also as two bfloat16 in an int32."""
    return np.full((*x.shape, jnp.dtype(x.dtype).itemsize), 0xFF, np.uint8).view(x.dtype)[..., 0]


class Ref:
    """A reference to memory, as kernels get them; `notes` are arrays of its shape, about its elements."""

    def __init__(self, array, **notes):
        self.array, self.shape, self.dtype, self.notes = array, array.shape, array.dtype, notes

    @property
    def at(self):
        return _At(self)

    def __getitem__(self, index):
        return self.array[_within(self.shape, index)].copy()

    def __setitem__(self, index, value):
        part = self.at[index]
        assert (part.shape, part.dtype) == (value.shape, value.dtype)
        part.note_write()
        part.array[...] = value

    def note_write(self):
        raise AssertionError("an operand is written")


class _At:
    def __init__(self, ref):
        self.ref = ref

    def __getitem__(self, index):
        index = (*_within(self.ref.shape, index), ...)  # a view even of a single number
        return type(self.ref)(self.ref.array[index], **{name: x[index] for name, x in self.ref.notes.items()})


class Result(Ref):
    """Global memory, every element of which is written once: another order of threads gives the same."""

    def __init__(self, array, **notes):
        super().__init__(array, **(notes or {"written": np.zeros(array.shape, bool)}))

    def note_write(self):
        assert not self.notes["written"].any(), "written twice"
        self.notes["written"][...] = True


class Shared(Ref):
    """Shared memory of a warpgroup, with the time of each element's last write, and last read by other lanes.

    Time is the number of barriers passed.
    """

    time: ClassVar = 0
    copies: ClassVar[list] = [[]]  # batches of (target, values) that are on their way; the last is still being made up

    def __init__(self, array, **notes):
        super().__init__(array, **(notes or {name: np.full(array.shape, -1) for name in ("write", "read", "copied")}))

    @classmethod
    def start(cls):
        cls.time, cls.copies = 0, [[]]

    def note_write(self):
        assert (self.notes["read"] < self.time).all(), "written while others may be reading"
        self.notes["write"][...] = self.time

    def copy(self, values):
        """Starts to; until they have arrived it is no use reading."""
        self.note_write()
        self.array[...] = _unwritten(self)
        self.notes["write"][...] = np.iinfo(int).max
        self.notes["copied"][...] = 1
        self.copies[-1].append((self, values))

    @classmethod
    def await_copies(cls, unfinished):
        while len(cls.copies) - 1 > unfinished:
            for target, values in cls.copies.pop(0):
                target.array[...] = values
                target.notes["write"][...] = cls.time

    def __getitem__(self, index):
        part = self.at[index]
        return part.array.copy() if part.shape else part.exchanged()  # one number is the same for all lanes

    def exchanged(self):
        """All of it, of which lanes read what others wrote."""
        assert (self.notes["write"] < self.time).all(), "read by lanes that did not wait for the writer"
        self.notes["read"][...] = self.time
        return self.array.copy()


def _within(shape, index):
    """The index as numpy takes it; refused where it leaves the array."""
    index = () if index is ... else index if isinstance(index, tuple) else (index,)
    index = tuple(slice(i.start, i.start + i.size) if isinstance(i, pl.Slice) else i for i in index)
    index = tuple(i if isinstance(i, slice) else int(i) for i in index)  # an array would index a copy
    for i, size in zip(index, shape, strict=False):
        start, last = (i.start or 0, (i.stop or size) - 1) if isinstance(i, slice) else (i, i)
        if not 0 <= start <= last < size:
            raise IndexError(f"{index} of an array of shape {shape}")
    return index


def row(ref):
    assert ref.shape == (LANES,)
    copied = isinstance(ref, Shared) and (ref.notes["copied"] == 1).any()
    return ref.exchanged() if copied else ref[...]


def zeros():
    return np.zeros(LANES, np.float32)


def reciprocal(x):
    return 1 / x


def rank_of_warp(first, start, length):
    return np.repeat(first + np.clip(start + np.arange(WARPS), 0, length - 1), WARP)


def of_warp(ref):
    return np.repeat(ref.exchanged(), WARP)


def copy_numbers(source, index, target):
    target.copy(np.array([source[i] for i in index[::WARP]]))


def copy_rows(source, row, target):
    assert source.dtype == target.dtype
    target.copy(np.concatenate([source[r] for r in row[::WARP]]))


def end_copies():
    Shared.copies.append([])


def await_copies(unfinished):
    Shared.await_copies(unfinished)


def spread(ref):
    return list(ref.at[_here["warpgroup"]].exchanged())  # numpy spreads them


def put_words(ref, words):
    ref[...] = np.stack(words).reshape(-1, 4, LANES).swapaxes(1, 2)


def get_words(ref):
    assert ref.dtype == np.float32
    return list(ref[...].swapaxes(1, 2).reshape(-1, LANES))


def pack(values):
    return list(np.stack(values, -1).astype(jnp.bfloat16).view(np.int32).T)


def unpack(words):
    return list(np.stack(words, -1).view(jnp.bfloat16).astype(np.float32).T)


def group_sums(acc, m, four, exact):
    four = np.stack(four)
    if not exact:  # what TF32 keeps
        four = (four.view(np.int32) & -(1 << 13)).view(np.float32)
    sums = np.repeat(four.reshape(4, -1, 4).sum(-1), 4, axis=-1)
    return list(np.stack(acc) + np.where(np.arange(LANES) % 4 == m, sums, 0))


def add_group_sums(sums, out, row, half, count):
    totals = sums.exchanged().reshape(4, LANES // 4, 16).sum(1)
    for r, total in list(zip(row[::WARP], totals, strict=True))[: max(count, 0)]:
        out[r, pl.ds(half, 16)] = total


def sync_warpgroup():
    Shared.time += 1


LANE_FUNCTIONS = (
    row, zeros, reciprocal, rank_of_warp, of_warp, copy_numbers, copy_rows, end_copies, await_copies, spread, put_words,
    get_words, pack, unpack, group_sums, add_group_sums, sync_warpgroup,
)  # fmt: skip

"""What a Mosaic GPU kernel with one channel a lane needs beyond jax.numpy: a few lines of PTX, each as a function.

A *lane array* is a (128,) array of which each of the 128 threads of a block holds one element. Values that all
lanes of a warp share (B and C of a token, say) are lane arrays too.
"""

# The type of plgpu.inline_mgpu's decorator keeps the first parameter, which callers do not pass.
# pyright: reportCallIssue=false

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, gpu, llvm, memref, vector

LANES = 128
LAYOUT = plgpu.Layout.WG_STRIDED((LANES,), 1)


def row(ref: Any) -> Array:
    """A (128,) row of shared or global memory as a lane array."""
    return _unmarked(plgpu.load(ref, layout=LAYOUT))


def _unmarked(x):
    """x, without an instruction. Under shard_map JAX marks what is loaded as varying over the mesh, but nothing that is
    computed in a kernel: of a loop's carry, which may begin as one and go on as the other, it takes but one type."""

    @plgpu.inline_mgpu(arg_types=(LAYOUT,), return_type=_type(x.dtype))
    def same(_, x):
        return x

    return same(x)


def zeros() -> Array:
    return plgpu.layout_cast(jnp.zeros((LANES,), jnp.float32), LAYOUT)


def _type(dtype):
    return plgpu.ShapeDtypeStruct((LANES,), dtype, layout=LAYOUT)


def _scalar(array):
    """The element that this thread holds."""
    return vector.extract(array.registers.flat[0], [], [0])


def _lane_array(scalar):
    register = vector.broadcast(ir.VectorType.get((1,), scalar.type), scalar)
    layout = mgpu.WGStridedFragLayout((LANES,), 1)
    signed = True if isinstance(scalar.type, ir.IntegerType) else None
    return mgpu.FragmentedArray(_registers=np.array([register], dtype=object), _layout=layout, _is_signed=signed)


def _i32(value):
    return arith.constant(ir.IntegerType.get_signless(32), value)


def _thread_of_block():
    return arith.index_cast(ir.IntegerType.get_signless(32), gpu.thread_id(gpu.Dimension.x))


def _thread():
    """Number of this thread in its warpgroup."""
    return arith.remui(_thread_of_block(), _i32(LANES))


def _address(ref, offset, dtype):
    """Pointer to the element `offset` (i32) of a contiguous ref."""
    return mgpu.utils.getelementptr(mgpu.utils.memref_ptr(ref), [offset], dtype)


def reciprocal(x: Array) -> Array:
    """1 / x by the special-function unit, within 1 ulp or so, for x that is neither tiny nor huge."""

    @plgpu.inline_mgpu(arg_types=(LAYOUT,), return_type=_type(jnp.float32))
    def approximate(_, x):
        return _lane_array(
            mgpu.utils.inline_ptx("rcp.approx.ftz.f32 $0, $1;", _scalar(x), result_types=ir.F32Type.get())
        )

    return approximate(x)


def rank_of_warp(first: Any, start: Any, length: int) -> Array:
    """first + start + w in warp w, with start + w held within 0 ... length - 1, as an int32 lane array."""
    scalar = plgpu.Layout.WG_SPLAT(())

    @plgpu.inline_mgpu(arg_types=(scalar, scalar), return_type=_type(jnp.int32))
    def rank(_, first, start):
        rank = arith.addi(start.registers.flat[0], arith.divui(_thread(), _i32(32)))
        rank = arith.minsi(arith.maxsi(rank, _i32(0)), _i32(length - 1))
        return _lane_array(arith.addi(first.registers.flat[0], rank))

    return rank(first, start)


def of_warp(ref: Any) -> Array:
    """Element w of `ref` (4,), int32, in shared memory, in warp w."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=_type(jnp.int32))
    def load(_, ref):
        return _lane_array(memref.load(ref, [arith.index_cast(ir.IndexType.get(), arith.divui(_thread(), _i32(32)))]))

    return load(ref)


def copy_numbers(source: Any, index: Array, target: Any) -> None:
    """Starts to copy four int32, source[index[w]] by warp w, from (L,) in global memory to (4,) in shared memory."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), LAYOUT, plgpu.RefType()))
    def copy(_, source, index, target):
        i32 = ir.IntegerType.get_signless(32)
        here = _address(source, _scalar(index), i32)
        there = _address(target, arith.divui(_thread(), _i32(32)), i32)
        first = arith.cmpi(arith.CmpIPredicate.eq, arith.remui(_thread(), _i32(32)), _i32(0))
        mgpu.utils.inline_ptx("cp.async.ca.shared.global [$0], [$1], 4;", there, here, predicate=first)

    copy(source, index, target)


def copy_rows(source: Any, row: Array, target: Any) -> None:
    """Starts to copy four rows, `row[w]` by warp w, from (L, k) in global memory to (4 k,) in shared memory.

    They are there for all after `await_copies` and `sync_warpgroup`.
    """

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), LAYOUT, plgpu.RefType()))
    def copy(_, source, row, target):
        i64 = ir.IntegerType.get_signless(64)
        memory = ir.MemRefType(source.type)
        (stride, _), _ = memory.get_strides_and_offset()
        each = memory.shape[1] // 32
        size = each * mgpu.utils.bitwidth(memory.element_type) // 8
        lane = arith.remui(_thread(), _i32(32))
        begin = arith.muli(arith.extsi(i64, _scalar(row)), arith.constant(i64, stride))  # may well pass 32 bits
        offset = arith.addi(begin, arith.extsi(i64, arith.muli(lane, _i32(each))))
        here = mgpu.utils.getelementptr(mgpu.utils.memref_ptr(source), [offset], memory.element_type)
        there = _address(target, arith.muli(_thread(), _i32(each)), memory.element_type)
        cache = "cg" if size == 16 else "ca"
        mgpu.utils.inline_ptx(f"cp.async.{cache}.shared.global [$0], [$1], {size};", there, here)

    copy(source, row, target)


def end_copies() -> None:
    """The copies started since the last call make up one batch."""

    @plgpu.inline_mgpu()
    def end(_):
        mgpu.utils.inline_ptx("cp.async.commit_group;")

    end()


def await_copies(unfinished: int) -> None:
    """Waits until this thread's batches of copies are done but for the last `unfinished`."""

    @plgpu.inline_mgpu()
    def wait(_):
        mgpu.utils.inline_ptx(f"cp.async.wait_group {unfinished};")

    wait()


def spread(ref: Any) -> list[Array]:
    """The numbers of this warpgroup's row of `ref` (warpgroups, k), in shared memory, each as a lane array; 4 | k."""
    count = ref.shape[1]

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=[_type(jnp.float32)] * count)
    def load(_, ref):
        # The number of the warpgroup is made of the thread's, of which ptxas cannot know that all lanes have the same:
        # an address that it knows to be uniform it copies to a register before every single load.
        warpgroup = arith.divui(_thread_of_block(), _i32(LANES))
        (stride, _), _ = ir.MemRefType(ref.type).get_strides_and_offset()
        start = _address(ref, arith.muli(warpgroup, _i32(stride)), ir.F32Type.get())
        return [x for i in range(0, count, 4) for x in _four(start, i)]

    return load(ref)


def _four(start, offset):
    """Four float32 numbers, by one load, from `offset` of them after the pointer `start`."""
    f32 = ir.F32Type.get()
    pointer = mgpu.utils.getelementptr(start, [offset], f32)
    loaded = llvm.load(ir.VectorType.get((4,), f32), pointer, alignment=16)
    return [_lane_array(vector.extract(loaded, [], [j])) for j in range(4)]


def sync_warpgroup() -> None:
    """What the 128 threads of a warpgroup wrote to shared memory before is seen by all of them after."""

    @plgpu.inline_mgpu()
    def sync(_):
        mgpu.utils.warpgroup_barrier()

    sync()


def put_words(ref: Any, words: Sequence[Array]) -> None:
    """Keeps float32 lane arrays, a multiple of 4, in shared memory (len(words) // 4, 128, 4), each lane its own."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), [LAYOUT] * len(words)))
    def store(_, ref, words):
        f32 = ir.F32Type.get()
        four = ir.VectorType.get((4,), f32)
        start = _address(ref, arith.muli(_thread(), _i32(4)), f32)
        for i in range(0, len(words), 4):
            value = vector.from_elements(four, [_scalar(word) for word in words[i : i + 4]])
            llvm.store(value, mgpu.utils.getelementptr(start, [i * LANES], f32), alignment=16)

    store(ref, list(words))


def get_words(ref: Any) -> list[Array]:
    """What this lane put there."""
    count = 4 * ref.shape[0]

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=[_type(jnp.float32)] * count)
    def load(_, ref):
        start = _address(ref, arith.muli(_thread(), _i32(4)), ir.F32Type.get())
        return [x for i in range(0, count, 4) for x in _four(start, i * LANES)]

    return load(ref)


def pack(values: Sequence[Array]) -> list[Array]:
    """Float32 lane arrays, an even number, as half as many words of two bfloat16."""

    @plgpu.inline_mgpu(arg_types=([LAYOUT] * len(values),), return_type=[_type(jnp.int32)] * (len(values) // 2))
    def packed(_, values):
        i32 = ir.IntegerType.get_signless(32)
        pairs = zip(values[::2], values[1::2], strict=True)
        ptx = "cvt.rn.bf16x2.f32 $0, $1, $2;"
        return [_lane_array(mgpu.utils.inline_ptx(ptx, _scalar(y), _scalar(x), result_types=i32)) for x, y in pairs]

    return packed(list(values))


def unpack(words: Sequence[Array]) -> list[Array]:
    """The inverse of `pack`."""

    @plgpu.inline_mgpu(arg_types=([LAYOUT] * len(words),), return_type=[_type(jnp.float32)] * (2 * len(words)))
    def unpacked(_, words):
        f32 = ir.F32Type.get()
        values = []
        for word in map(_scalar, words):
            values.append(_lane_array(arith.bitcast(f32, arith.shli(word, _i32(16)))))
            values.append(_lane_array(arith.bitcast(f32, arith.andi(word, _i32(-(1 << 16))))))
        return values

    return unpacked(list(words))


def group_sums(acc: Sequence[Array], m: int, four: Sequence[Array], exact: bool) -> list[Array]:
    """Adds up four lane arrays, numbers 4 m ... 4 m + 3 of 16, over groups of 4 lanes, on the tensor cores.

    Called with `acc` zero for m = 0, then with its own result, it leaves lane 4 g + i of a warp with the sums of
    arrays 4 i ... 4 i + 3 over the warp's lanes 4 g ... 4 g + 3.

    mma.sync multiplies A (16 x 8) by B (8 x 8). The four arrays are A: lane 4 g + i holds its elements
    (g, i), (g + 8, i), (g, i + 4) and (g + 8, i + 4). A B that is 1 in column 2 m at rows 0 ... 3, and in column
    2 m + 1 at rows 4 ... 7, makes columns 2 m and 2 m + 1 of the product their sums; four such products, one on
    top of the other, fill its 8 columns.
    Tensor cores read float32 as TF32, 10 bits of mantissa: with `exact` they are given the rest in a second product.
    """

    @plgpu.inline_mgpu(arg_types=([LAYOUT] * 4, [LAYOUT] * 4), return_type=[_type(jnp.float32)] * 4)
    def add(_, acc, four):
        f32, i32 = ir.F32Type.get(), ir.IntegerType.get_signless(32)
        group = arith.divui(arith.remui(_thread(), _i32(32)), _i32(4))

        def in_column(column):
            here = arith.cmpi(arith.CmpIPredicate.eq, group, _i32(column))
            return arith.select(here, _i32(0x3F800000), _i32(0))  # 1.0, 0.0

        def parts(x):
            """x as TF32 numbers that add up to it."""
            if not exact:
                return [arith.bitcast(i32, x)]
            high = arith.andi(arith.bitcast(i32, x), _i32(-(1 << 13)))
            return [high, arith.bitcast(i32, arith.subf(x, arith.bitcast(f32, high)))]

        ptx = (
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
            "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
        )
        ones = [in_column(2 * m), in_column(2 * m + 1)]
        acc = [_scalar(x) for x in acc]
        for a in zip(*(parts(_scalar(four[k])) for k in (0, 2, 1, 3)), strict=True):
            acc = mgpu.utils.inline_ptx(ptx, *a, *ones, *acc, result_types=[f32] * 4, convergent=True)
        return [_lane_array(x) for x in acc]

    return add(list(acc), list(four))


def add_group_sums(sums: Any, out: Any, row: Array, half: Any, count: Any) -> None:
    """Adds up over the warpgroup what it has from `group_sums` for four tokens, put by `put_words` in `sums`.

    sums: (4, 1, 128, 4) in shared memory. The 16 totals of token w go, by warp w, to columns `half` ... `half` + 15
    of row `row` of `out` (L, 32), in global memory, for the first `count` tokens.
    """
    scalar = plgpu.Layout.WG_SPLAT(())

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.RefType(), LAYOUT, scalar, scalar))
    def add(_, sums, out, row, half, count):
        f32, index = ir.F32Type.get(), ir.IndexType.get()
        lane, warp = arith.remui(_thread(), _i32(32)), arith.divui(_thread(), _i32(32))
        number, share = arith.shrui(lane, _i32(1)), arith.andi(lane, _i32(1))  # a lane adds up two warps' groups
        start = arith.addi(arith.muli(warp, _i32(4 * LANES)), arith.muli(share, _i32(2 * LANES)))
        base = _address(sums, arith.addi(start, number), f32)
        parts = []
        for g in range(16):  # even and odd lanes read different groups at a time: other banks of shared memory
            own = arith.muli(arith.xori(share, _i32(g)), _i32(16))
            parts.append(llvm.load(f32, mgpu.utils.getelementptr(base, [own], f32)))
        while len(parts) > 1:
            parts = [arith.addf(x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        other = mgpu.utils.shfl_bfly(parts[0], 1)
        total = arith.addf(parts[0], other)
        keeps = arith.andi(
            arith.cmpi(arith.CmpIPredicate.slt, warp, count.registers.flat[0]),
            arith.cmpi(arith.CmpIPredicate.eq, share, _i32(0)),
        )
        column = arith.addi(half.registers.flat[0], number)
        with mgpu.utils.when(keeps):
            memref.store(total, out, [arith.index_cast(index, _scalar(row)), arith.index_cast(index, column)])

    add(sums, out, row, half, count)

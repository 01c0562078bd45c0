"""What the Mosaic GPU kernels of the selective scan share: geometry of the launch, tokens read ahead, elementwise math.

A block of `warpgroups` x 128 threads scans as many channels, one a thread, of one sequence, or of one of the equal
parts ("splits") that a sequence is cut into when batch and channels alone would leave the GPU idle.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from zigma_kernels import mosaic_lanes as lanes
from zigma_kernels.mosaic_lanes import LANES

F32 = jnp.float32
GROUP = 4  # tokens worked on at once; a row for each warp of a warpgroup to fetch
STAGES = 4  # groups in shared memory at once: the one worked on, the next, two on their way
FOUND = 16  # groups of whose tokens it is known at once where they lie
# No barrier around every store to shared memory: the kernels have their own, where another thread reads.
PARAMS = plgpu.CompilerParams(
    approx_math=True, unsafe_no_auto_barriers=True, lowering_semantics=plgpu.LoweringSemantics.Lane
)


@dataclass(frozen=True)
class Plan:
    """How a scan is laid out on the GPU.

    Attributes:
        sequences, length, channels, states: q = batch x segments; L of one segment; d; n.
        segments: independent sequences of each sample.
        chunk: tokens between the states that the forward pass keeps; a multiple of GROUP.
        warpgroups: of 128 threads, in a block.
        splits: parts of a sequence, scanned at the same time.
        chunks_per_split: in each but the last of them, which may have fewer.
        pieces: parts of a split whose carries are found at the same time.
    """

    sequences: int
    length: int
    channels: int
    states: int
    segments: int
    chunk: int
    warpgroups: int
    splits: int = 1
    chunks_per_split: int = 0
    pieces: int = 1

    @classmethod
    def choose(cls, sequences, length, channels, states, segments, dtype, multiprocessors):
        """The plan for this shape: enough blocks to occupy every multiprocessor, in whole waves, one a processor."""
        chunk = 16
        columns, chunks = channels // LANES, -(-length // chunk)
        warpgroups = min(3 if jnp.dtype(dtype).itemsize == 2 else 2, columns)  # what shared memory has room for
        blocks = sequences * -(-columns // warpgroups)

        def waves(parts, of=1):
            return -(-blocks * parts // multiprocessors) / of

        def cost(splits):  # of a part; the carries cost about 0.35 of the scan, and chaining them a little each
            return waves(splits, splits) * (1 if splits == 1 else 1.35) + 0.001 * splits

        per_split = -(-chunks // min(range(1, max(1, min(64, chunks // 2)) + 1), key=cost))
        splits = -(-chunks // per_split)
        pieces = min((r for r in (1, 2, 4) if per_split % r == 0), key=lambda r: waves((splits - 1) * r, r))
        return cls(sequences, length, channels, states, segments, chunk, warpgroups, splits, per_split, pieces)

    @property
    def chunks(self) -> int:
        return -(-self.length // self.chunk)

    @property
    def columns(self) -> int:
        """Blocks of 128 channels."""
        return self.channels // LANES

    @property
    def ragged(self) -> bool:
        """Whether the last chunk is not full."""
        return self.length % self.chunk != 0

    def launch(self, kernel, out, scratch, parts):
        """The kernel, run for every sequence, part and column."""

        def body(*refs):
            here = lax.axis_index("block") * self.warpgroups + lax.axis_index("warpgroup")
            if self.columns % self.warpgroups:
                pl.when(here < self.columns)(lambda: kernel(*refs))
            else:
                kernel(*refs)

        run = plgpu.kernel(
            body,
            out_type=out,
            grid=(self.sequences, parts, -(-self.columns // self.warpgroups)),
            grid_names=("sequence", "part", "block"),
            num_threads=self.warpgroups,
            thread_name="warpgroup",
            scratch_types=scratch,
            compiler_params=PARAMS,
        )

        def run_in_32_bits(*operands):
            with jax.enable_x64(False):  # indices of 64 bits do not mix with the GPU's
                return run(*operands)

        return run_in_32_bits


class Place:
    """Inside a kernel: which sequence, part and channels this warpgroup works on."""

    def __init__(self, plan: Plan, tokens=None, found=None):
        self.plan, self.tokens = plan, tokens
        self.sequence, self.part = lax.axis_index("sequence"), lax.axis_index("part")
        self.batch = self.sequence // plan.segments
        self.first = (self.sequence % plan.segments) * plan.length  # rank, in the visiting order, of the first token
        self.warpgroup = lax.axis_index("warpgroup")
        self.column = lax.axis_index("block") * plan.warpgroups + self.warpgroup
        self.channels = pl.ds(self.column * LANES, LANES)
        if found is not None:
            self.found = found.at[self.warpgroup]

    # Group g is the tokens visited g GROUP-th and after; past either end of the sequence, its first or last token.

    def find(self, g):
        """Starts to find out where group g lies: needed by `fetch` and `rows`, after it has been waited for."""
        if self.tokens is not None:
            rank = lanes.rank_of_warp(self.first, g * GROUP, self.plan.length)
            lanes.copy_numbers(self.tokens, rank, self.found.at[g & (FOUND - 1)])

    def find_first(self, groups):
        """`find`, and waits."""
        if self.tokens is not None:
            for g in groups:
                self.find(g)
            lanes.end_copies()
            lanes.await_copies(0)
            lanes.sync_warpgroup()

    def fetch(self, g, *pairs):
        """Starts to copy group g's rows, of (b, L, d) or (b, L, 2 n) in global memory, to shared memory; with what
        `find` started since the last call they are a batch."""
        row = self.row(g)
        for source, target in pairs:
            own = (slice(None), self.channels) if source.shape[2] == self.plan.channels else ()
            lanes.copy_rows(source.at[self.batch, *own], row, target)
        lanes.end_copies()

    def row(self, g):
        """Where the token of group g lies that is this warp's."""
        if self.tokens is None:
            return lanes.rank_of_warp(self.first, g * GROUP, self.plan.length)
        return lanes.of_warp(self.found.at[g & (FOUND - 1)])

    def rows(self, g):
        """Where all the tokens of group g lie."""
        if self.tokens is None:
            return [self.first + jnp.clip(g * GROUP + t, 0, self.plan.length - 1) for t in range(GROUP)]
        return [self.found[g & (FOUND - 1), t] for t in range(GROUP)]

    def states(self, ref, *at):
        return [lanes.row(ref.at[self.sequence, *at, k, self.channels]) for k in range(ref.shape[-2])]

    def put_states(self, ref, states, *at):
        for k, state in enumerate(states):
            ref[self.sequence, *at, k, self.channels] = state

    def within(self, i, put):
        """Does `put` unless token i is past the end."""
        pl.when(i < self.plan.length)(put) if self.plan.ragged else put()

    def masked(self, i, x):
        return jnp.where(i < self.plan.length, x, 0.0) if self.plan.ragged else x


def softplus(x):
    """log(1 + exp(x)), accurate where it is small: 2 atanh(p / (2 + p)) for p = exp(-|x|)."""
    p = jnp.exp(-jnp.abs(x))
    return _softplus(x, p * lanes.reciprocal(2.0 + p))


def softplus_and_sigmoid(x, z):
    """(softplus(x), sigmoid(z)) with one division for both: the unit that divides is the busy one."""
    p, q = jnp.exp(-jnp.abs(x)), jnp.exp(-jnp.abs(z))
    one = lanes.reciprocal((2.0 + p) * (1.0 + q))
    return _softplus(x, p * (1.0 + q) * one), jnp.where(z < 0, q, 1.0) * (2.0 + p) * one


def _softplus(x, s):
    t = s * s
    series = 2.0 + t * (2 / 3 + t * (2 / 5 + t * (2 / 7 + t * (2 / 9 + t * (2 / 11 + t * (2 / 13))))))
    return jnp.maximum(x, 0.0) + s * series


def sigmoid_of_softplus(delta):
    """sigmoid(x) from softplus(x): 1 - exp(-delta), accurate where it is small."""
    small = delta * (1.0 - delta * (1 / 2 - delta * (1 / 6 - delta * (1 / 24 - delta * (1 / 120)))))
    return jnp.where(delta < 0.1, small, 1.0 - jnp.exp(-delta))


def shape(*dims, dtype=F32):
    return jax.ShapeDtypeStruct(dims, dtype)


def given(*args):
    return [x for x in args if x is not None]

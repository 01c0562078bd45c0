"""How fast a device could run an op at best, from its own memory bandwidth, clock and number of processors."""

import math
import subprocess
from dataclasses import dataclass

import jax
import jax.numpy as jnp

# A clock cycle of one streaming multiprocessor, from compute capability 8.0 on (CUDA programming guide, table of
# arithmetic throughput): four warps of 32 lanes issue an instruction, 16 lanes start a special function.
LANES_PER_CLOCK = 128
SPECIAL_PER_CLOCK = 16

LARGEST_ON_CPU = 2 * 4096 * 1536  # elements of the input; beyond it the slower implementations take minutes


@dataclass(frozen=True)
class Work:
    """What one pass of an op cannot do without: bytes moved, special functions, instructions (of one lane)."""

    bytes: int
    special: int
    instructions: int


@dataclass(frozen=True)
class Device:
    """What bounds a GPU: bytes a second, as measured by a copy; multiprocessors; cycles a second, at most."""

    bandwidth: float
    processors: int
    clock: float

    def milliseconds(self, *passes: Work) -> float:
        """The least time for these passes, one after the other: of each, its slowest part."""
        cycles = self.processors * self.clock
        return 1e3 * sum(
            max(
                work.bytes / self.bandwidth,
                work.special / (cycles * SPECIAL_PER_CLOCK),
                work.instructions / (cycles * LANES_PER_CLOCK),
            )
            for work in passes
        )


def scan_work(shapes: dict[str, jax.ShapeDtypeStruct]) -> tuple[Work, Work]:
    """Forward and backward pass of `selective_scan`.

    Special functions: the decay of every state, softplus and SiLU (two each). Instructions as the leanest kernels
    known need them: about 10 a state and token forward (exponent, decay, the state's and the output's multiply-add,
    B and C fetched), about 19 backward.
    """
    elements, states = math.prod(shapes["u"].shape), shapes["A"].shape[1]
    rows = _bytes(shapes["u"])
    arguments = sum(map(_bytes, shapes.values()))
    special = elements * (states + 4)
    return (
        Work(arguments + rows, special, 10 * elements * states),
        Work(2 * arguments + rows, special, 19 * elements * states),
    )


def conv_work(shapes: dict[str, jax.ShapeDtypeStruct]) -> tuple[Work, Work]:
    """Forward and backward pass of `causal_conv`: memory bounds both; SiLU takes two special functions."""
    elements, taps = math.prod(shapes["x"].shape), shapes["weight"].shape[0]
    rows = _bytes(shapes["x"])
    arguments = sum(map(_bytes, shapes.values()))
    return (
        Work(arguments + rows, 2 * elements, 2 * elements * taps),
        Work(2 * arguments + rows, 2 * elements, 4 * elements * taps),
    )


def _bytes(x) -> int:
    return math.prod(x.shape) * x.dtype.itemsize


def measure(milliseconds) -> Device | None:
    """The device at hand, timed by `milliseconds(run)`; None where clock or processors cannot be known."""
    device = jax.devices()[0]
    processors, clock = getattr(device, "core_count", None), _highest_clock()
    if jax.default_backend() != "gpu" or processors is None or clock is None:
        return None
    x = jnp.zeros(2**28, jnp.float32)  # 1 GiB
    copy = jax.jit(lambda x: x + 1)
    return Device(2 * x.nbytes / (1e-3 * milliseconds(lambda: copy(x))), processors, clock)


def _highest_clock() -> float | None:
    """Of the multiprocessors, in Hz, as the driver allows it."""
    command = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return 1e6 * float(answer.splitlines()[0])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return None

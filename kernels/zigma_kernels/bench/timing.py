"""How one call of an op is timed: forward, and forward and backward together."""

import functools
import importlib.metadata
import math
import os
import platform
import statistics
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax

from zigma_kernels.bench.limits import LARGEST_ON_CPU, conv_work, scan_work
from zigma_kernels.causal_conv import IMPLEMENTATIONS as CONV_IMPLEMENTATIONS
from zigma_kernels.causal_conv import causal_conv
from zigma_kernels.causal_conv.cases import CASES as CONV_CASES
from zigma_kernels.dispatch import CpuKernel, NvidiaKernel
from zigma_kernels.selective_scan import IMPLEMENTATIONS as SCAN_IMPLEMENTATIONS
from zigma_kernels.selective_scan import selective_scan
from zigma_kernels.selective_scan.cases import CASES as SCAN_CASES

CPU = jax.default_backend() == "cpu"
LARGEST_REFERENCE = (
    2**21
)  # elements of the input on accelerators: there, one small kernel after the other for every token
SECONDS_A_REPEAT = 0.03  # on accelerators, as many calls
ONE_AT_A_TIME = threading.Lock()  # tracing is Python, and not all compilers of kernels bear company
PACKAGES = ("jax", "jaxlib", "numpy", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-triton", "triton")


def whole_sequence(u, dt, A, B, C, D, z, dt_bias, *, order):
    """The usual scan in JAX, one `lax.associative_scan` over all tokens left to autodiff: for comparison alone."""
    if order is not None:
        raise NotImplementedError("raster order only")
    # A dozen arrays of all states in float32 are alive at once.
    needed = 13 * 4 * u.size * A.shape[1]
    if (free := _device_memory()) is not None and needed > free:
        raise NotImplementedError(f"needs about {needed / 2**30:.0f} GiB of {free / 2**30:.0f}")
    u32, dt, B, C, z = (x.astype(jnp.float32) for x in (u, dt, B, C, z))
    delta = jax.nn.softplus(dt + dt_bias)
    decay = jnp.exp(delta[..., None] * A)
    inputs = (delta * u32)[..., None] * B[:, :, None, :]

    def then(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    h = lax.associative_scan(then, (decay, inputs), axis=1)[1]
    y = jnp.einsum("bldn,bln->bld", h, C) + D * u32
    return (y * jax.nn.silu(z)).astype(u.dtype)


def _device_memory() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")


def ops():
    """{op: (cases, {implementation: function}, work)}"""

    def by_each(op, implementations):
        def call(name, *args, **kwargs):
            implementation = implementations[name]
            if isinstance(implementation, NvidiaKernel | CpuKernel):
                implementation.require_device()
            return op(*args, implementation=name, **kwargs)

        return {name: functools.partial(call, name) for name in implementations}

    scans = by_each(selective_scan, SCAN_IMPLEMENTATIONS) | {"whole_sequence": whole_sequence}
    return {
        "selective_scan": (SCAN_CASES, scans, scan_work),
        "causal_conv": (CONV_CASES, by_each(causal_conv, CONV_IMPLEMENTATIONS), conv_work),
    }


def compiled(name, function, case):
    """Forward, and forward and backward, compiled for a case; may be called in several threads.

    Raises NotImplementedError for what is too large, besides what the implementation raises.
    """
    if CPU and case.elements > LARGEST_ON_CPU:
        raise NotImplementedError("too large for a CPU")
    if not CPU and name == "reference" and case.elements > LARGEST_REFERENCE:
        raise NotImplementedError("too slow at this size")

    def forward(args):
        return function(**args, **case.options)

    def both(args, dy):
        y, vjp = jax.vjp(forward, args)
        return y, vjp(dy)

    with ONE_AT_A_TIME:
        first = jax.jit(forward).lower(case.shapes)
        second = jax.jit(both).lower(case.shapes, first.out_info)
    return first.compile(), second.compile()


@functools.lru_cache(maxsize=1)  # cases that follow one another often differ in their order alone
def drawn(shapes):
    """Arguments by name, on the device, of ((name, shape, dtype), …): steps of about 0.01, decays 1 … n."""

    @jax.jit
    def draw():
        args = {name: jax.random.normal(jax.random.key(i), *rest) for i, (name, *rest) in enumerate(shapes)}
        if "A" in args:
            args["A"] = -jnp.broadcast_to(jnp.arange(1.0, args["A"].shape[1] + 1), args["A"].shape)
            args["dt"] = args["dt"] / 2 - jnp.asarray(4, args["dt"].dtype)
        return args

    return jax.block_until_ready(draw())


def milliseconds(run, repeats, wait=jax.block_until_ready):
    """One call's time by the clock, and the processors': the best on a CPU, on accelerators the median.

    `wait(run())` returns when the device has done what the call asked of it.
    """
    wait(run())
    start = time.perf_counter()
    wait(run())
    once = time.perf_counter() - start
    calls = 1 if CPU else min(100, math.ceil(SECONDS_A_REPEAT / once))
    times = []
    for _ in range(repeats + (not CPU)):
        start = time.perf_counter(), time.process_time()
        for _ in range(calls - 1):
            run()
        wait(run())
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    if not CPU:
        times = times[1:]  # the first brings the clocks up
    pick = min if CPU else statistics.median
    return [1e3 * pick(each) / calls for each in zip(*times, strict=True)]


def row_of(case, name, programs, work, limits, repeats):
    """One row of the table, by column, but for the speed-up."""
    forward, both = programs
    args = drawn(tuple((name, x.shape, x.dtype) for name, x in case.shapes.items()))
    dy = forward(args)
    forward_ms, _ = milliseconds(lambda: forward(args), repeats)
    both_ms, processors_ms = milliseconds(lambda: both(args, dy), repeats)
    memory = both.memory_analysis()
    extra = memory.temp_size_in_bytes if memory else float("nan")
    row = identity(case, name) | {"forward, ms": forward_ms, "forward + backward, ms": both_ms}
    if CPU:
        row["of processors, ms"] = processors_ms
    elif limits:
        passes = work(case.shapes)
        row["forward, of limit"] = limits.milliseconds(passes[0]) / forward_ms
        row["of limit"] = limits.milliseconds(*passes) / both_ms
    row["extra memory, MiB"] = extra / 2**20
    row["x input"] = extra / (case.elements * jnp.dtype(case.dtype).itemsize)
    return row


def identity(case, name):
    """The first columns of a row: what was timed."""
    sizes = f"{case.batch} x {case.length} x {case.channels}"
    return {"case": case.name, "b x L x d": sizes, "dtype": case.dtype, "implementation": name}


def why_not(error):
    """The reason why something cannot run here; None if it should."""
    if isinstance(error, NotImplementedError | ImportError):
        return str(error)
    return "out of memory" if "RESOURCE_EXHAUSTED" in str(error) else None


def about():
    """{"device": what JAX computes on, "versions": of the packages that matter}"""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"device": _device(), "versions": versions}


def _device():
    if not CPU:
        return f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"CPU, {os.cpu_count()} cores, {(models or [platform.processor() or 'unknown model'])[0]}"

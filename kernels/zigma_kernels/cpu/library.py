"""The kernels for CPUs: compiled by the machine's own compiler at their first use, then kept.

The wheel holds sources alone. What is compiled from them is for the processor at hand, so it is faster than what one
wheel for all could hold, and lies in the user's cache directory under a name that stands for all that it depends on.
Where there is no compiler, or it fails, callers are told by NotImplementedError and take another implementation.

The environment variable ZIGMA_CPU_KERNELS says otherwise: "off" uses none of this, "require" makes a failure an error.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import jax
import jax.ffi
import jaxlib

from zigma_kernels.partitioned import vary_alike
from zigma_kernels.storage import cache_folder

CHUNK = 64  # tokens of a sequence between two saved states
BLOCK = 64  # channels of a task; what is summed over channels is summed block by block, whatever the machine

_OPTIONS = ("-O3", "-std=c++17", "-ffp-contract=fast", "-fPIC", "-shared", "-w")
_NATIVE = ("-march=native",)
_SYMBOLS = tuple(
    f"{op}_{direction}_{dtype}"
    for op in ("selective_scan", "causal_conv")
    for direction in ("forward", "backward")
    for dtype in ("float32", "bfloat16")
)
_log = logging.getLogger(__name__)


def require() -> None:
    """Raises NotImplementedError, with the reason, unless the kernels are there; compiles them if need be.

    Raises:
        RuntimeError: they are not, and ZIGMA_CPU_KERNELS=require.
    """
    wanted = os.environ.get("ZIGMA_CPU_KERNELS", "")
    if wanted not in ("", "off", "require"):
        raise ValueError(f"ZIGMA_CPU_KERNELS={wanted}: must be off, require, or not set")
    if wanted == "off":
        raise NotImplementedError("turned off by ZIGMA_CPU_KERNELS=off")
    if reason := _load():
        refuse(reason)


def refuse(reason: str) -> NoReturn:
    """Raises NotImplementedError; RuntimeError if ZIGMA_CPU_KERNELS=require."""
    if os.environ.get("ZIGMA_CPU_KERNELS") == "require":
        raise RuntimeError(f"ZIGMA_CPU_KERNELS=require, but {reason}")
    raise NotImplementedError(reason)


def call(symbol: str, results, aliases: dict[int, int] | None = None, **options):
    """The function of arrays that runs a kernel of the library.

    Args:
        symbol: the kernel's name.
        results: shapes and dtypes of what it returns.
        aliases: which argument's memory, if nothing needs it later, serves for which result.
        options: attributes of the kernel.
    """
    require()
    run = jax.ffi.ffi_call(_target(symbol), results, input_output_aliases=aliases)
    return functools.partial(run, **options)


def by_platform(kernel, other, *arrays):
    """`kernel(*arrays)` in a program for CPUs, `other(*arrays)` in one for anything else."""

    def alike(function):  # under shard_map the results have to be of one type
        return lambda *arrays: vary_alike((function(*arrays), arrays))[0]

    return jax.lax.platform_dependent(*arrays, cpu=alike(kernel), default=alike(other))


@functools.cache
def _load() -> str:
    """Compiles, loads and registers the kernels; the reason if that fails, else "". Once a process."""
    try:
        library = ctypes.CDLL(str(_compiled()))
        for symbol in _SYMBOLS:
            handler = jax.ffi.pycapsule(getattr(library, symbol))
            jax.ffi.register_ffi_target(_target(symbol), handler, platform="cpu")
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        reason = f"the kernels for CPUs are not there: {error}"
        _log.info("%s; slower code is used", reason)
        return reason
    return ""


def _target(symbol: str) -> str:
    """Named after the sources too: a program that XLA cached must not meet kernels of another version."""
    return f"zigma_{symbol}_{digest()[:16]}"


def _compiled() -> Path:
    """The library's file; compiled if it is not there yet. Several processes may do so at once."""
    name = f"kernels_{digest()[:32]}.so"
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / name).exists():
            return folder / name
        work = Path(tempfile.mkdtemp(dir=folder))
    except OSError:  # a home that cannot be written to: kept for this process alone
        folder, work = None, Path(tempfile.mkdtemp(prefix="zigma_kernels_"))
    try:
        _compile(work / name)
        if folder is None:
            return work / name
        os.replace(work / name, folder / name)
        return folder / name
    finally:
        if folder is not None:
            shutil.rmtree(work, ignore_errors=True)


def _compile(output: Path) -> None:
    compiler = _compiler()
    fixed = [*_OPTIONS, f"-DZIGMA_CHUNK={CHUNK}", f"-DZIGMA_BLOCK={BLOCK}", "-isystem", jax.ffi.include_dir()]
    source = Path(__file__).with_name("kernels.cc")
    for native in (_NATIVE, ()):  # not every compiler knows every processor
        command = [*compiler, *fixed, *native, str(source), "-o", str(output)]
        found = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if found.returncode == 0:
            return
    lines = [line for line in found.stderr.splitlines() if "error" in line] or found.stderr.splitlines()
    raise OSError(f"{shlex.join(compiler)} failed: {' '.join(lines[:1])}")


def _compiler() -> list[str]:
    if own := os.environ.get("CXX"):
        return shlex.split(own)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise OSError("there is no C++ compiler ($CXX, c++, g++ or clang++)")


@functools.cache
def digest() -> str:
    """Of all that decides what the compiled library is: sources, options, JAX's interface and the processor."""
    here = Path(__file__).parent
    sources = b"".join(path.read_bytes() for path in sorted([*here.glob("*.cc"), *here.glob("*.h")]))
    facts = (_OPTIONS, _NATIVE, CHUNK, BLOCK, os.environ.get("CXX"), jaxlib.__version__, sys.platform, _processor())
    return hashlib.sha256(sources + repr(facts).encode()).hexdigest()


def _processor() -> str:
    """What the processor can do, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {line.split(":")[0].strip(): line for line in lines}
    features = [told[name] for name in ("vendor_id", "cpu family", "model", "flags", "Features") if name in told]
    return " ".join([platform.machine(), platform.processor(), *features])

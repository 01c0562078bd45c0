"""Checksums of checkpoints: of every array as it was on the device, of every file as it is on disk.

The two see different damage. `fingerprint` is taken of the array itself, before anything is copied or
written, and again after reading: whatever went wrong between is found, and the leaf is named. `SHA256SUMS`
covers every byte of every file, metadata that nobody reads too. It is in the format of the `sha256sum`
command: `sha256sum -c SHA256SUMS` checks by hand.
"""

import hashlib
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped, UInt32

from zigma_jax.files import AnyPath, files_below

SUMS = "SHA256SUMS"
_LINE = re.compile(r"[0-9a-f]{64}  (?!/).+\n")


@jax.jit
def fingerprint(x: Shaped[Array, "..."]) -> UInt32[Array, "sums=3"]:
    """Two 32-bit sums over the elements of `x`, and 0 if every element is finite (1 if not).

    Each element's bits are mixed with its position and the results are added modulo 2³². Addition has no
    order, so the sums depend neither on the sharding nor on the number of devices, and each process adds up
    what it holds. For a given position the mixing is a bijection: a change of one element always changes the
    sums; of several, all but surely.
    """
    bits = _bits(x)
    position = jnp.uint32(0)
    for axis in range(x.ndim):
        stride = np.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        position = position + lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
    lanes = [_mix(bits ^ _mix(position ^ np.uint32(seed))) for seed in (0, 0x9E3779B9)]
    broken = ~jnp.isfinite(x) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.zeros(x.shape, bool)
    # One pass over the three; separate sums are several times slower to run and to compile on a CPU.
    return jnp.stack(
        lax.reduce(
            (*lanes, broken.astype(jnp.uint32)),
            (np.uint32(0),) * 3,
            lambda p, q: (p[0] + q[0], p[1] + q[1], p[2] | q[2]),
            tuple(range(x.ndim)),
        )
    )


def _bits(x: Array) -> Array:
    """The elements' bits as uint32."""
    if x.dtype == jnp.bool:
        return x.astype(jnp.uint32)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}.get(x.dtype.itemsize)
    if word is None:
        raise TypeError(f"an array of {x.dtype} cannot be in a checkpoint: elements have at most 32 bits")
    return lax.bitcast_convert_type(x, word).astype(jnp.uint32)


def _mix(h: Array) -> Array:
    """The finaliser of MurmurHash3: a bijection of uint32, every input bit reaches every output bit."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def write_sums(directory: AnyPath) -> None:
    """Writes `SHA256SUMS`: how many files there are below `directory`, hidden ones apart, and a line for each."""
    lines = _lines(directory)
    (directory / SUMS).write_text("".join([f"# {len(lines)} files\n", *lines.values()]))


def check_sums(directory: AnyPath) -> list[str]:
    """What is wrong with the files that `SHA256SUMS` lists, a phrase each; empty if each is as it was written.

    Others, as desktops and file servers leave them everywhere, are not looked at.
    """
    try:
        written = _written(directory)
    except OSError as error:
        return [_unreadable(error)]
    if written and written[0].startswith("#"):  # checkpoints of early versions have no such line
        if written[0] != f"# {len(written) - 1} files\n":
            return [f"file {SUMS} is damaged"]
        written = written[1:]
    names = [line[66:].removesuffix("\n") for line in written]
    # A damaged line may hold any name, also one that leads out of the directory.
    if not names or not all(map(_LINE.fullmatch, written)) or any(".." in PurePosixPath(name).parts for name in names):
        return [f"file {SUMS} is damaged"]

    def problem(name: str, line: str) -> str:
        if not (directory / name).exists():
            return f"file {name} is missing"
        try:
            return "" if _line(directory, name) == line else f"file {name} does not match its checksum"
        except OSError as error:
            return _unreadable(error)

    with _pool() as pool:
        return sorted(filter(None, pool.map(problem, names, written)))


def check_file(directory: AnyPath, name: str) -> list[str]:
    """As `check_sums`, for one file."""
    try:
        sound = _line(directory, name) in _written(directory)
    except OSError as error:
        return [_unreadable(error)]
    return [] if sound else [f"file {name} does not match its checksum"]


def _written(directory: AnyPath) -> list[str]:
    return (directory / SUMS).read_bytes().decode(errors="replace").splitlines(keepends=True)


def _lines(directory: AnyPath) -> dict[str, str]:
    """name -> its line of SHA256SUMS as the file is now; sorted by name."""
    names = sorted(path.relative_to(directory).as_posix() for path in files_below(directory))
    names = [name for name in names if name != SUMS and not name.rpartition("/")[2].startswith(".")]
    with _pool() as pool:
        return dict(zip(names, pool.map(lambda name: _line(directory, name), names), strict=True))


def _line(directory: AnyPath, name: str) -> str:
    digest = hashlib.sha256()
    with (directory / name).open("rb") as file:
        while data := file.read(2**22):
            digest.update(data)
    return f"{digest.hexdigest()}  {name}\n"


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # hashing releases the interpreter's lock


def _unreadable(error: OSError) -> str:
    return f"file {error.filename} cannot be read ({error.strerror or error})"

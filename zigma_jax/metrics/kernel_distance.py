"""Kernel (inception) distance: the squared maximum mean discrepancy under (x · y / d + 1)³ (arXiv 1801.01401)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from zigma_jax.errors import DataError
from zigma_jax.metrics.pairwise import BLOCK, block_size, check_features, in_blocks, products

# Levels of the coarse part of a value: sums of a block's are whole numbers below 2²⁴, exact in float32.
_LEVELS = 2**24 // BLOCK // 2


def kernel_distance(
    generated: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m e"],
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Mean and standard deviation of the unbiased estimate over random subsets of both sets.

    The subsets are those that torch-fidelity draws from the same seed, on any machine: NumPy keeps the stream
    of its legacy generator for ever.

    Raises:
        DataError: fewer samples than `subset_size`; features of different dimensions, or not finite.
    """
    check_features(generated=generated, reference=reference)
    if subsets < 1 or subset_size < 2:
        raise DataError(f"subsets = {subsets}, subset_size = {subset_size}: must be at least 1 and 2")
    if (fewest := min(len(generated), len(reference))) < subset_size:
        raise DataError(
            f"{fewest} samples: a subset takes {subset_size}; take more samples, or unbiased_kernel_distance of all"
        )
    rng = np.random.RandomState(seed)
    estimates = []
    for _ in range(subsets):
        x = generated[rng.choice(len(generated), subset_size, replace=False)]
        y = reference[rng.choice(len(reference), subset_size, replace=False)]
        estimates.append(_estimate(x, y))
    return float(np.mean(estimates)), float(np.std(estimates))


def unbiased_kernel_distance(generated: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m e"]) -> float:
    """The unbiased estimate from all samples at once; can be slightly negative.

    Raises:
        DataError: fewer than two samples; features of different dimensions, or not finite.
    """
    check_features(generated=generated, reference=reference)
    if (fewest := min(len(generated), len(reference))) < 2:
        raise DataError(f"{fewest} samples: the estimate needs at least 2")
    return _estimate(generated, reference)


def _estimate(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Means of k(x, x') over pairs of different samples, and the same of y, less twice the mean of k(x, y)."""
    centre = (x.mean(0, dtype=np.float64) + y.mean(0, dtype=np.float64)) / 2
    size = block_size(len(x), len(y))
    a, b = _Side.of(x, centre, size), _Side.of(y, centre, size)
    n, m = len(x), len(y)
    within_a = (_sum(a, a) - _of_itself(x)) / (n * (n - 1))
    within_b = (_sum(b, b) - _of_itself(y)) / (m * (m - 1))
    return float(within_a + within_b - 2 * _sum(a, b) / (n * m))


def _of_itself(x: Float[np.ndarray, "n d"]) -> float:
    """The sum of k(x, x)."""
    return float(((np.square(x.astype(np.float64)).mean(1) + 1) ** 3).sum())


@dataclasses.dataclass(frozen=True)
class _Side:
    """One of the two sets, less a centre c common to both.

    With x = c + x', the kernel's x · y / d + 1 is (h + u) + (h + v) + p, where h is half of c · c / d + 1,
    u = c · x' / d, v = c · y' / d, and p = x' · y' / d. Only p needs a matrix product, and it is small where the
    features are far from zero and close to each other: float32 keeps its digits, which the whole would drown. The
    rest is in float64.
    """

    blocks: Float[Array, "blocks size d"]
    centred: Float[np.ndarray, "n d"]
    weights: Float[np.ndarray, " n"]
    """h + u"""
    largest: float
    """of x' · x' / d"""

    @staticmethod
    def of(rows: Float[np.ndarray, "n d"], centre: Float[np.ndarray, " d"], size: int) -> "_Side":
        centred = rows - centre
        weights = (centre @ centre / len(centre) + 1) / 2 + centred @ centre / len(centre)
        return _Side(in_blocks(centred, size).rounded, centred, weights, float(np.square(centred).mean(1).max()))


def _sum(a: _Side, b: _Side) -> float:
    """Of (w + p)³ over all pairs, w = the sum of both weights: the powers of w and w² p without the pairs."""
    n, m, d = len(a.centred), len(b.centred), a.centred.shape[1]
    u, v = (np.stack([side.weights**power for power in range(4)]) for side in (a, b))  # (4, n), (4, m)
    su, sv = u.sum(1), v.sum(1)
    cubes = m * su[3] + 3 * su[2] * sv[1] + 3 * su[1] * sv[2] + n * sv[3]
    eu, ev = u[:3] @ a.centred, v[:3] @ b.centred
    linear = (eu[2] @ ev[0] + 2 * eu[1] @ ev[1] + eu[0] @ ev[2]) / d

    largest = max(math.sqrt(a.largest * b.largest), 1e-10)  # |p| of any pair, by Cauchy and Schwarz
    # Powers of two: dividing by them is exact.
    quanta = [2.0 ** (math.ceil(math.log2(largest**power)) - math.log2(_LEVELS)) for power in (2, 3)]
    parts = _block_sums(a.blocks, b.blocks, *quanta)
    by_row, by_column, of_cubes = (np.asarray(part, np.float64).sum(-1) for part in parts)  # (p, q, s)
    squares = by_row.sum(1).reshape(-1)[:n] @ a.weights + by_column.sum(0).reshape(-1)[:m] @ b.weights
    return float(cubes + 3 * linear + 3 * squares + of_cubes.sum())


@jax.jit
def _block_sums(
    x: Float[Array, "p s d"],
    y: Float[Array, "q s d"],
    of_squares: Float[Array, ""] | float,
    of_cubes: Float[Array, ""] | float,
) -> tuple[Float[Array, "p q s parts=2"], ...]:
    """Of p = x · y / d in every block: sums of p² over its columns, of p² over its rows, of p³ over its columns.

    Each is an exact sum of multiples of a quantum, and a sum of the rest: float32 sums of the values as they are would
    drown the distance, a difference of means 10⁴ times as large. Rows of zeros add nothing.
    """

    def parts(values, quantum, axis):
        coarse = jnp.round(values / quantum) * quantum
        return jnp.stack([coarse.sum(axis), (values - coarse).sum(axis)], -1)

    def block(rows, columns):
        p = products(rows, columns) / rows.shape[-1]
        squares = p * p
        return parts(squares, of_squares, 1), parts(squares, of_squares, 0), parts(squares * p, of_cubes, 1)

    return lax.map(lambda rows: lax.map(lambda columns: block(rows, columns), y), x)

"""Kernel (inception) distance: the squared maximum mean discrepancy under (x · y / d + 1)³ (arXiv 1801.01401)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from zigma_jax.metrics.pairwise import BLOCK, block_size, check_features, in_blocks, products

# Levels of the coarse part of a kernel value: sums of a block's are whole numbers below 2²⁴, exact in float32.
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
        ValueError: fewer samples than `subset_size`; features of different dimensions, or not finite.
    """
    check_features(generated=generated, reference=reference)
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"subsets = {subsets}, subset_size = {subset_size}: must be at least 1 and 2")
    if (fewest := min(len(generated), len(reference))) < subset_size:
        raise ValueError(
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
        ValueError: fewer than two samples; features of different dimensions, or not finite.
    """
    check_features(generated=generated, reference=reference)
    if (fewest := min(len(generated), len(reference))) < 2:
        raise ValueError(f"{fewest} samples: the estimate needs at least 2")
    return _estimate(generated, reference)


def _estimate(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Means of k(x, x') over pairs of different samples, and the same of y, less twice the mean of k(x, y)."""
    size = block_size(len(x), len(y))
    x_blocks, y_blocks = in_blocks(x, size), in_blocks(y, size)
    x_norms, y_norms = np.square(x.astype(np.float64)).mean(1), np.square(y.astype(np.float64)).mean(1)
    largest = float(_kernel_less_one(max(x_norms.max(), y_norms.max())))
    # A power of two: dividing by it is exact.
    quantum = 2.0 ** (math.ceil(math.log2(max(largest, 1e-30))) - math.log2(_LEVELS))

    def total(a: Float[Array, "p s d"], b: Float[Array, "q s d"]) -> float:
        return float(np.asarray(_block_sums(a, b, quantum), np.float64).sum())

    n, m = len(x), len(y)
    within_x = (total(x_blocks, x_blocks) - _kernel_less_one(x_norms).sum()) / (n * (n - 1))
    within_y = (total(y_blocks, y_blocks) - _kernel_less_one(y_norms).sum()) / (m * (m - 1))
    return float(within_x + within_y - 2 * total(x_blocks, y_blocks) / (n * m))


@jax.jit
def _block_sums(
    x: Float[Array, "p s d"], y: Float[Array, "q s d"], quantum: Float[Array, ""] | float
) -> Float[Array, "p q s parts=2"]:
    """Sums of k − 1 over the columns of every block; each as an exact sum of a coarse part and one of the rest.

    Summed as they are, float32 values of k would drown the distance, a difference of means 10⁴ times as large.
    """

    def block(rows, columns):
        k = _kernel_less_one(products(rows, columns) / rows.shape[-1])
        coarse = jnp.round(k / quantum) * quantum
        return jnp.stack([coarse.sum(1), (k - coarse).sum(1)], -1)

    return lax.map(lambda rows: lax.map(lambda columns: block(rows, columns), y), x)


def _kernel_less_one(s):
    """(s + 1)³ − 1. The one cancels from the distance, and without it rows of zeros add nothing."""
    return s * (s * (s + 3) + 3)

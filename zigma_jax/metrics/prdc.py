"""Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797): sets as balls round features.

The ball of a sample reaches to its k-th nearest neighbour in its own set.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zigma_jax.errors import DataError
from zigma_jax.metrics.pairwise import Blocks, block_size, check_features, in_blocks, squared_distances


def prdc(
    generated: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m e"], k: int = 3, density_k: int = 5
) -> dict[str, float]:
    """ "precision", "recall", "density" and "coverage" of the generated samples.

    precision: the part of the generated samples within a ball of the reference, of `k` neighbours.
    recall: the part of the reference within a ball of the generated samples, of `k` neighbours.
    density: how many balls of the reference, of `density_k` neighbours, hold a generated sample, over `density_k`.
    coverage: the part of the reference's balls, of `density_k` neighbours, that hold a generated sample.

    The defaults for k are the papers'. A sample on a ball's border is in for precision and recall (equation 1),
    out for density and coverage (as their authors count, so that the density of a set in itself is 1).

    Raises:
        DataError: not more than `k` or `density_k` samples; features of different dimensions, or not finite.
    """
    check_features(generated=generated, reference=reference)
    if min(k, density_k) < 1:
        raise DataError(f"k = {k}, density_k = {density_k}: must be at least 1")
    for name, features, most in ("generated", generated, k), ("reference", reference, max(k, density_k)):
        if len(features) <= most:
            raise DataError(f"{name}: {len(features)} samples: must be more than the {most} neighbours")
    # Distances don't change with the origin, but float32 keeps more of them near the mean.
    mean = reference.mean(0, dtype=np.float64)  # the features less it are float64, and in_blocks keeps their digits
    size = block_size(len(generated), len(reference))
    real, fake = in_blocks(reference - mean, size), in_blocks(generated - mean, size)
    n_real, n_fake = len(reference), len(generated)
    real_radii = _nearest(real, n_real, max(k, density_k))
    fake_radii = _nearest(fake, n_fake, k)
    precise, holders, recalled, covered = _compare(
        real, fake, n_real, n_fake, real_radii[..., k - 1], fake_radii[..., k - 1], real_radii[..., density_k - 1]
    )
    return {
        "precision": _mean(precise, n_fake),
        "recall": _mean(recalled, n_real),
        "density": _mean(holders, n_fake) / density_k,
        "coverage": _mean(covered, n_real),
    }


@functools.partial(jax.jit, static_argnames="k")
def _nearest(blocks: Blocks, count: int | Int[Array, ""], k: int) -> Float[Array, "p s {k}"]:
    """Squared distances to the k nearest others of the first `count` rows, ascending."""
    shape = blocks.rounded.shape[:2]
    index = jnp.arange(shape[0] * shape[1]).reshape(shape)

    def of_rows(block):
        rows, row_index = block

        def fold(nearest, block):
            columns, column_index = block
            other = (column_index < count) & (column_index != row_index[:, None])
            distances = jnp.where(other, squared_distances(rows, columns), jnp.inf)
            return -lax.top_k(-jnp.concatenate([nearest, distances], 1), k)[0], None

        return lax.scan(fold, jnp.full((shape[1], k), jnp.inf), (blocks, index))[0]

    return lax.map(of_rows, (blocks, index))


@jax.jit
def _compare(
    real: Blocks,
    fake: Blocks,
    n_real: int | Int[Array, ""],
    n_fake: int | Int[Array, ""],
    real_radii: Float[Array, "p s"],
    fake_radii: Float[Array, "q s"],
    density_radii: Float[Array, "p s"],
) -> tuple[Bool[Array, "q s"], Int[Array, "q s"], Bool[Array, "p s"], Bool[Array, "p s"]]:
    """Of each fake sample: whether a real ball holds it, and how many do; of each real one: whether a fake ball
    holds it, and whether its own ball holds a fake. Radii are squared."""

    def exist(blocks: Blocks, count: int | Int[Array, ""]) -> Bool[Array, "blocks s"]:
        shape = blocks.rounded.shape[:2]
        return jnp.arange(shape[0] * shape[1]).reshape(shape) < count

    in_real, in_fake = exist(real, n_real), exist(fake, n_fake)

    def of_reals(fakes_so_far, block):
        rows, rows_exist, radii, wide_radii = block

        def of_fakes(reals_so_far, block):
            columns, columns_exist, their_radii = block
            recalled, covered = reals_so_far
            distances = jnp.where(rows_exist[:, None] & columns_exist, squared_distances(rows, columns), jnp.inf)
            recalled |= (distances <= their_radii).any(1)
            covered |= (distances < wide_radii[:, None]).any(1)
            held = (distances <= radii[:, None]).any(0)
            return (recalled, covered), (held, (distances < wide_radii[:, None]).sum(0))

        nothing = jnp.zeros(rows_exist.shape, bool)
        reals, (held, holders) = lax.scan(of_fakes, (nothing, nothing), (fake, in_fake, fake_radii))
        return (fakes_so_far[0] | held, fakes_so_far[1] + holders), reals

    start = jnp.zeros(in_fake.shape, bool), jnp.zeros(in_fake.shape, int)
    fakes, reals = lax.scan(of_reals, start, (real, in_real, real_radii, density_radii))
    return *fakes, *reals


def _mean(values: Bool[Array, "p s"] | Int[Array, "p s"], count: int) -> float:
    return float(np.asarray(values).reshape(-1)[:count].mean(dtype=np.float64))

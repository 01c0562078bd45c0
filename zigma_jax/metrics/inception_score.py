"""The inception score (arXiv 1606.03498): how sure a classifier is of each picture, and how many classes it sees."""

import numpy as np
from jaxtyping import Float

from zigma_jax.errors import DataError


def inception_score(logits: Float[np.ndarray, "n classes"], splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """Mean and standard deviation over `splits` parts of exp(mean KL(p(class | picture) || p(class))).

    Between 1 and the number of classes. Parts are taken in a random order, torch-fidelity's for the same seed.

    Raises:
        ValueError: fewer samples than splits, splits below 1, or logits that are not finite.
    """
    n = len(logits)
    if not 1 <= splits <= n:
        raise DataError(f"splits = {splits}: must be in 1 … {n}, the number of samples")
    if not np.isfinite(logits).all():
        raise DataError("logits are not finite")
    order = np.random.RandomState(seed).permutation(n)
    scores = []
    for i in range(splits):
        part = logits[order[i * n // splits : (i + 1) * n // splits]].astype(np.float64)
        part -= part.max(1, keepdims=True)
        log_p = part - np.log(np.exp(part).sum(1, keepdims=True))
        p = np.exp(log_p)
        # A class that no picture shows has p = 0 throughout and adds nothing.
        log_marginal = np.log(np.maximum(p.mean(0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (log_p - log_marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))

"""Writes tests/goldens/metrics.npz: features of two sets, and what other libraries make of them in float64.

Run once, with torch 2.13, torchvision, torch-fidelity 0.4.0, prdc 0.2, scikit-learn 1.9.1 and numpy 2.4.6:

    python tests/metrics/make_goldens.py
"""
# pyright: reportMissingImports=false

from pathlib import Path

import numpy as np
import torch
from prdc import compute_prdc
from sklearn.metrics.pairwise import polynomial_kernel
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

GOLDENS = Path(__file__).parents[1] / "goldens"
RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(8, 16)) / 2


def draw(count: int, shift: float, spread: float) -> np.ndarray:
    """Correlated, none negative, some zero: like a network's pooled features."""
    x = spread * RNG.normal(size=(count, 8)) @ MIX + 0.3 * RNG.normal(size=(count, 16)) + shift
    return np.maximum(x + 0.4, 0).astype(np.float32)


def kid_of_all(x: np.ndarray, y: np.ndarray) -> float:
    def k(a, b):
        return polynomial_kernel(a, b, degree=3, gamma=1 / a.shape[1], coef0=1)

    def within(a):
        return (k(a, a).sum() - np.trace(k(a, a))) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * k(x, y).mean()


def main() -> None:
    real, fake = draw(400, 0.0, 1.0), draw(350, 0.15, 0.85)
    logits = (3 * RNG.normal(size=(333, 12))).astype(np.float32)
    out: dict = {"real": real, "fake": fake, "logits": logits}
    x, y = fake.astype(np.float64), real.astype(np.float64)
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    fid = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)
    out["fd"] = fid["frechet_inception_distance"]
    polynomial = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    sets = {"kid_subsets": 20, "kid_subset_size": 100, "rng_seed": 2020, "verbose": False}
    kid = kid_features_to_metric(a, b, kid_kernel_poly_coef0=1, **polynomial, **sets)
    out["kid_mean"], out["kid_std"] = kid["kernel_inception_distance_mean"], kid["kernel_inception_distance_std"]
    out["kid_full"] = kid_of_all(x, y)
    for k in (3, 5):
        out |= {f"prdc/{k}/{name}": value for name, value in compute_prdc(y, x, k).items()}
        prc = prc_features_to_metric(a, b, prc_neighborhood=k, prc_batch_size=10000, save_cpu_ram=False, verbose=False)
        out |= {f"prc/{k}/{name}": prc[name] for name in ("precision", "recall")}
    for splits in (1, 10):
        score = isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=True, rng_seed=2020)
        out[f"is/{splits}/mean"], out[f"is/{splits}/std"] = score["inception_score_mean"], score["inception_score_std"]
    np.savez_compressed(GOLDENS / "metrics.npz", allow_pickle=False, **out)


if __name__ == "__main__":
    main()

"""How close two sets of pictures are."""

from zigma_jax.metrics.accumulate import Moments
from zigma_jax.metrics.features import FeatureExtractor, Features, extract
from zigma_jax.metrics.frechet import Gaussian, frechet_distance
from zigma_jax.metrics.inception_score import inception_score
from zigma_jax.metrics.kernel_distance import kernel_distance, unbiased_kernel_distance
from zigma_jax.metrics.motion import changes, frozen, motion, shuffled
from zigma_jax.metrics.prdc import prdc
from zigma_jax.metrics.reference_file import cached_features, load_features, save_features
from zigma_jax.metrics.table import LOWER_IS_BETTER, METRICS, FewSamplesWarning, check_metrics, compute, metric_label

__all__ = [
    "LOWER_IS_BETTER",
    "METRICS",
    "FeatureExtractor",
    "Features",
    "FewSamplesWarning",
    "Gaussian",
    "Moments",
    "cached_features",
    "changes",
    "check_metrics",
    "compute",
    "extract",
    "frechet_distance",
    "frozen",
    "inception_score",
    "kernel_distance",
    "load_features",
    "metric_label",
    "motion",
    "prdc",
    "save_features",
    "shuffled",
    "unbiased_kernel_distance",
]

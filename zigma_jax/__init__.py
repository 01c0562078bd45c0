"""ZigMa (Zigzag Mamba diffusion, arXiv 2403.13802) in JAX: the model, its scan orders, interpolants and samplers."""

from zigma_jax.interpolant import Interpolant, autoguide, bits_per_dim, guide, log_likelihood, sample_ode, sample_sde
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.orders import scan_orders
from zigma_jax.models.parameter_table import parameter_table
from zigma_jax.models.presets import presets
from zigma_jax.models.sit import SiT, SiTConfig
from zigma_jax.models.text import Text
from zigma_jax.models.zigma import ZigMa
from zigma_jax.plotting import plot_orders

__all__ = [
    "Interpolant",
    "SiT",
    "SiTConfig",
    "Text",
    "ZigMa",
    "ZigMaConfig",
    "autoguide",
    "bits_per_dim",
    "guide",
    "log_likelihood",
    "parameter_table",
    "plot_orders",
    "presets",
    "sample_ode",
    "sample_sde",
    "scan_orders",
]

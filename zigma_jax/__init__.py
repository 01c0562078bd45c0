"""ZigMa (Zigzag Mamba diffusion, arXiv 2403.13802) in JAX."""

from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.presets import presets
from zigma_jax.models.zigma import ZigMa

__all__ = ["ZigMa", "ZigMaConfig", "presets"]

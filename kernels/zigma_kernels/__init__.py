"""Ops for linear-time sequence models on token grids, in JAX alone (no Flax)."""

from zigma_kernels.causal_conv import causal_conv
from zigma_kernels.dispatch import explain
from zigma_kernels.grid_path import GridPath
from zigma_kernels.selective_scan import selective_scan
from zigma_kernels.ssd import ssd
from zigma_kernels.visiting import Visit

__all__ = ["GridPath", "Visit", "causal_conv", "explain", "selective_scan", "ssd"]

"""ZigMa (Zigzag Mamba diffusion, arXiv 2403.13802) in JAX."""

"""Ops for linear-time sequence models on token grids, in JAX alone (no Flax)."""

"""Whole models side by side, in time and memory: `python -m zigma_jax.bench`."""

"""Interpolants between noise and data: training loss, fields, and the samplers that follow them."""

from zigma_jax.interpolant.grid import time_points
from zigma_jax.interpolant.guidance import autoguide, guide
from zigma_jax.interpolant.likelihood import bits_per_dim, log_likelihood
from zigma_jax.interpolant.objective import Fields, Interpolant
from zigma_jax.interpolant.ode import sample_ode
from zigma_jax.interpolant.sde import sample_sde

__all__ = [
    "Fields",
    "Interpolant",
    "autoguide",
    "bits_per_dim",
    "guide",
    "log_likelihood",
    "sample_ode",
    "sample_sde",
    "time_points",
]

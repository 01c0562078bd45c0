"""Mamba-2's scan (SSD) along a visiting order; `api` has the contract."""

from zigma_kernels.ssd.api import IMPLEMENTATIONS, ssd

__all__ = ["IMPLEMENTATIONS", "ssd"]

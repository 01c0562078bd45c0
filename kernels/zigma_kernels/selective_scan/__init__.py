"""The selective scan of Mamba along a visiting order; `api` has the contract."""

from zigma_kernels.selective_scan.api import IMPLEMENTATIONS, selective_scan

__all__ = ["IMPLEMENTATIONS", "selective_scan"]

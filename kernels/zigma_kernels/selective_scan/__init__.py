"""The selective scan of Mamba: one op, several implementations of one contract (see `api`)."""

from zigma_kernels.selective_scan.api import IMPLEMENTATIONS, selective_scan

__all__ = ["IMPLEMENTATIONS", "selective_scan"]

"""Causal depthwise convolution along a visiting order; `api` has the contract."""

from zigma_kernels.causal_conv.api import IMPLEMENTATIONS, causal_conv

__all__ = ["IMPLEMENTATIONS", "causal_conv"]

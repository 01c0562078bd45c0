"""Causal depthwise convolution along a visiting order: one op, several implementations of one contract (see `api`)."""

from zigma_kernels.causal_conv.api import IMPLEMENTATIONS, causal_conv

__all__ = ["IMPLEMENTATIONS", "causal_conv"]

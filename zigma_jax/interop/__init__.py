"""Weights from and for elsewhere: the official PyTorch checkpoints, and safetensors."""

from zigma_jax.interop.official import load_official, save_official
from zigma_jax.interop.safetensors import load_safetensors, save_safetensors

__all__ = ["load_official", "load_safetensors", "save_official", "save_safetensors"]

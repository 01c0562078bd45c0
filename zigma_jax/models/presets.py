"""The official model sizes (`zigma_s_1` … `zigma_h_4` in model_zigma.py; SiT's), at 32 × 32 × 4 latents.

Take one and change what differs:
`dataclasses.replace(presets["zigma_b_2"], sample_shape=(16, 32, 32, 4), scan="video_sst")`.
"""

from types import MappingProxyType

from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.sit import SiTConfig

_SIZES = {"s": (368, 24), "b": (768, 24), "m": (768, 48), "l": (1024, 48), "h": (1536, 48)}

_SIT_SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}

presets = MappingProxyType(
    {
        f"zigma_{size}_{patch}": ZigMaConfig(patch_size=patch, hidden_size=hidden, depth=depth)
        for size, (hidden, depth) in _SIZES.items()
        for patch in (1, 2, 4)
    }
    | {
        f"sit_{size}_{patch}": SiTConfig(patch_size=patch, hidden_size=hidden, depth=depth, num_heads=heads)
        for size, (hidden, depth, heads) in _SIT_SIZES.items()
        for patch in (2, 4, 8)
    }
)

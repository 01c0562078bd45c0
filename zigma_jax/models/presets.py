"""The official model sizes (`zigma_s_1` … `zigma_h_4` in model_zigma.py), at 32 × 32 × 4 latents.

Take one and change what differs:
`dataclasses.replace(presets["zigma_b_2"], sample_shape=(16, 32, 32, 4), scan="video_sst")`.
"""

from types import MappingProxyType

from zigma_jax.models.config import ZigMaConfig

_SIZES = {"s": (368, 24), "b": (768, 24), "m": (768, 48), "l": (1024, 48), "h": (1536, 48)}

presets = MappingProxyType(
    {
        f"zigma_{size}_{patch}": ZigMaConfig(patch_size=patch, hidden_size=hidden, depth=depth)
        for size, (hidden, depth) in _SIZES.items()
        for patch in (1, 2, 4)
    }
)

"""Other backbones beside a ZigMa, by name: as many parameters, or nearly, and everything else the same."""

import dataclasses
import re
from typing import Any

from zigma_jax.errors import ConfigError
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.orders import scan_orders
from zigma_jax.models.sit import SIT_REMAT, SiTConfig

NAMES = "an order (zigzag8, sweep2, hilbert8, …), mamba2, attention, hybrid<k>, sit; with the order, mamba2/sweep1"
_MAMBA2_STATES = 64


def variant(base: ZigMaConfig, name: str) -> Any:
    """`base` along another order, with another mixer, or the transformer in its place.

    A layer of attention and MLP (of 4 times the width) has twice the parameters of a Mamba layer of the same width, so
    that "attention" and "sit" have half of `base`'s layers:

        an order: `base` along it
        "mamba2": 64 states a channel
        "attention": attention and MLP in ZigMa's block
        "hybrid<k>": attention without MLP in every k-th layer
        "sit": the transformer as published, SiT
        "NAME/ORDER": of mamba2 and hybrid<k>, along another order than `base`'s

    Raises ConfigError for an unknown name, and for a model that cannot be.
    """
    kind, _, order = name.partition("/")
    scan = order or base.scan
    hybrid = re.fullmatch(r"hybrid([1-9]\d*)", kind)
    if order and not (kind == "mamba2" or hybrid):
        raise ConfigError(
            f"{name!r}: an order makes no difference to {kind}, or is the name by itself. There are {NAMES}"
        )
    head_size = next(size for size in (64, 32, 16, 8, 4, 2, 1) if base.hidden_size % size == 0)
    if kind == "mamba2":
        cfg = dataclasses.replace(base, mixer="mamba2", scan=scan, state_size=_MAMBA2_STATES, head_size=head_size)
    elif hybrid:
        cfg = dataclasses.replace(base, attention_every=int(hybrid[1]), scan=scan, head_size=head_size)
    elif kind == "attention":
        depth = max(1, base.depth // 2)
        cfg = dataclasses.replace(base, mixer="attention", mlp_ratio=4.0, depth=depth, head_size=head_size)
    elif kind == "sit":
        shared = {field.name for field in dataclasses.fields(SiTConfig)} & {f.name for f in dataclasses.fields(base)}
        shared -= set() if base.remat in SIT_REMAT else {"remat"}
        fields = {field: getattr(base, field) for field in shared} | {
            "depth": max(1, base.depth // 2),
            "mlp_ratio": 4.0,
        }
        return SiTConfig(**fields, num_heads=base.hidden_size // head_size, learn_sigma=False)
    else:
        try:
            scan_orders(kind, base.grid, seed=base.scan_seed)
        except ConfigError as error:
            if "there is no such order" in str(error):
                raise ConfigError(f"{name!r}: no such backbone. There are {NAMES}") from None
            raise
        return dataclasses.replace(base, scan=kind)
    scan_orders(cfg.scan, cfg.grid, seed=cfg.scan_seed)
    return cfg

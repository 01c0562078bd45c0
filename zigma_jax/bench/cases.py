"""What is measured: a model of a size, a number of tokens, and what is done with it."""

import dataclasses
import math
import re
from typing import Any

from zigma_jax.errors import ConfigError
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.orders import scan_orders
from zigma_jax.models.sit import SiTConfig

OPERATIONS = ("forward", "gradient", "step", "sample")
SIZES = {"s": (384, 12), "b": (768, 12), "l": (1024, 24)}  # width and depth of SiT; the others follow
MODELS = "zigma, mamba2, attention, hybrid<k>, each with /ORDER if it is not zigzag8; sit; torch_sit"
_PATCH, _CHANNELS = 2, 4  # of latents of a picture, as in the papers


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of a table.

    Attributes:
        model: a name of `MODELS`.
        size: a name of `SIZES`: models of a size have about as many parameters.
        tokens, batch: of each sample, and samples.
        operation: "forward"; "gradient" of the training loss; "step", that and the optimiser; "sample", 8 steps of
            Heun's method, 16 times forward.
        remat: "default", or what the backward pass computes again, as a model's configuration has it.
        dtype: of the products and activations.
    """

    model: str
    size: str
    tokens: int
    batch: int
    operation: str
    remat: str = "default"
    dtype: str = "float32"

    def __post_init__(self):
        if self.operation not in OPERATIONS:
            raise ConfigError(f"operation = {self.operation!r}: must be one of {', '.join(OPERATIONS)}")
        if math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ConfigError(f"tokens = {self.tokens}: must be a square, the grid has as many rows as columns")
        if self.model != "torch_sit":
            model_config(self)

    @property
    def key(self) -> str:
        return " ".join(map(str, dataclasses.astuple(self)))


def model_config(case: Case) -> Any:
    """The configuration of a case's model. Raises ConfigError for an unknown name or size."""
    if case.size not in SIZES:
        raise ConfigError(f"size = {case.size!r}: must be one of {', '.join(SIZES)}")
    width, depth = SIZES[case.size]
    side = _PATCH * math.isqrt(case.tokens)
    fields: dict[str, Any] = {
        "sample_shape": (side, side, _CHANNELS),
        "patch_size": _PATCH,
        "hidden_size": width,
        "dtype": case.dtype,
        "num_classes": 0,
    }
    if case.remat != "default":
        fields["remat"] = case.remat
    name, _, order = case.model.partition("/")
    if name in ("sit", "torch_sit") and not order:
        heads = width // 64
        return SiTConfig(**fields, depth=depth, num_heads=heads, null_class=False, learn_sigma=False)
    fields |= {"pos_embed": "sincos", "scan": order or "zigzag8", "drop_path_rate": 0.0}
    hybrid = re.fullmatch(r"hybrid(\d+)", name)
    if name == "zigma":
        cfg = ZigMaConfig(**fields, depth=2 * depth)
    elif name == "mamba2":
        cfg = ZigMaConfig(**fields, depth=2 * depth, mixer="mamba2", state_size=64)
    elif name == "attention":
        cfg = ZigMaConfig(**fields, depth=depth, mixer="attention", mlp_ratio=4.0)
    elif hybrid:
        cfg = ZigMaConfig(**fields, depth=2 * depth, attention_every=int(hybrid[1]))
    else:
        raise ConfigError(f"model = {case.model!r}: there are {MODELS}")
    scan_orders(cfg.scan, cfg.grid)
    return cfg

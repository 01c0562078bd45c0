"""What is measured: a model of a size, a number of tokens, and what is done with it."""

import dataclasses
import math
from typing import Any

from zigma_jax.errors import ConfigError
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.variants import variant

OPERATIONS = ("forward", "gradient", "step", "sample")
SIZES = {"s": (384, 12), "b": (768, 12), "l": (1024, 24)}  # width and depth of SiT; the others follow
MODELS = "zigma, mamba2, hybrid<k>, each with /ORDER if it is not zigzag8; attention; sit; torch_sit"
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
    zigma = ZigMaConfig(
        sample_shape=(side, side, _CHANNELS),
        patch_size=_PATCH,
        hidden_size=width,
        depth=2 * depth,
        pos_embed="sincos",
        drop_path_rate=0.0,
        dtype=case.dtype,
    )
    if case.remat != "default":
        zigma = dataclasses.replace(zigma, remat=case.remat)
    name, _, order = case.model.partition("/")
    if name == "zigma":
        return variant(zigma, order or zigma.scan)
    return variant(zigma, "sit" if case.model == "torch_sit" else case.model)

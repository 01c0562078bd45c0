"""SiT: the transformer that ZigMa is compared with (arXiv 2401.08740), as its official code computes it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Integer, Key

from zigma_jax.errors import ConfigError
from zigma_jax.models.attention import SelfAttention
from zigma_jax.models.blocks import MLP, layer_norm, modulate
from zigma_jax.models.embeddings import patchify, sincos_table, sinusoidal, unpatchify
from zigma_jax.models.initializers import normal_002, xavier_uniform, zeros
from zigma_jax.models.linear import Linear
from zigma_jax.models.placement import gathered, placed, remat
from zigma_jax.models.zigma import REMAT_POLICIES, stack_layers

SIT_REMAT = ("none", "dots", "block")


@dataclasses.dataclass(frozen=True)
class SiTConfig:
    """Architecture and numerics of a `SiT`.

    Attributes:
        sample_shape: shape of one sample, channels last: `(h, w, c)`.
        patch_size: side of the square patches that become tokens; divides h and w.
        hidden_size: width of the token stream.
        depth: number of blocks.
        num_heads: of the attention; divides `hidden_size`.
        mlp_ratio: inner width of a block's MLP over `hidden_size`.
        num_classes: number of class labels; 0 for a model without.
        null_class: one more class, with index `num_classes`, that stands for "no label".
        learn_sigma: the output layer makes twice the channels, of which the first half is the prediction.
        dtype: compute dtype of matrix products and activations. Parameters, norms, softmax and the output layer are
            float32 whatever it is.
        remat: what the backward pass recomputes: nothing ("none"), all but matrix products ("dots"), or whole blocks
            ("block").

    Raises:
        ConfigError: a field breaks its rule; the message names field, value and rule.
    """

    sample_shape: tuple[int, ...] = (32, 32, 4)
    patch_size: int = 2
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = True
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self):
        object.__setattr__(self, "sample_shape", tuple(self.sample_shape))

        def require(ok: bool, field: str, rule: str):
            if not ok:
                raise ConfigError(f"SiTConfig.{field} = {getattr(self, field)!r}: {rule}")

        require(
            len(self.sample_shape) == 3 and all(s > 0 for s in self.sample_shape),
            "sample_shape",
            "must be (height, width, channels), all positive",
        )
        for field in ("patch_size", "hidden_size", "depth", "num_heads"):
            require(getattr(self, field) >= 1, field, "must be at least 1")
        height, width = self.sample_shape[:2]
        require(
            height % self.patch_size == 0 and width % self.patch_size == 0,
            "patch_size",
            f"must divide the sample's height and width, which are {height} × {width}",
        )
        require(self.hidden_size % self.num_heads == 0, "num_heads", f"must divide hidden_size = {self.hidden_size}")
        require(self.hidden_size % 4 == 0, "hidden_size", "must be a multiple of 4 (sine and cosine of two axes)")
        require(self.mlp_ratio > 0, "mlp_ratio", "must be positive")
        require(self.num_classes >= 0, "num_classes", "must not be negative; 0 means no class labels")
        require(not self.null_class or self.num_classes > 0, "null_class", "needs num_classes > 0")
        for field, choices in {"dtype": ("float32", "bfloat16"), "remat": SIT_REMAT}.items():
            require(getattr(self, field) in choices, field, f"must be one of {', '.join(choices)}")

    @property
    def context_size(self) -> int:
        """It takes no text."""
        return 0

    @property
    def channels(self) -> int:
        return self.sample_shape[-1]

    @property
    def grid(self) -> tuple[int, ...]:
        """Token grid: (rows, columns)."""
        height, width, _ = self.sample_shape
        return (height // self.patch_size, width // self.patch_size)

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def mlp_size(self) -> int:
        return round(self.mlp_ratio * self.hidden_size)


class SiT(nnx.Module):
    """The backbone: patches → tokens → `depth` blocks → patches. Source: `models.py` of SiT.

    Args:
        cfg: architecture and numerics.
        rngs: `nnx.Rngs`; its `params` stream initialises the weights as the original does.

    Attributes:
        blocks: one `SiTBlock` whose parameters carry a leading layer axis (depth, …).
    """

    Config = SiTConfig

    def __init__(self, cfg: SiTConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(cfg.dtype)
        size, patch_values = cfg.hidden_size, cfg.patch_size**2 * cfg.channels
        self.cfg = cfg
        self.patch_embed = Linear(
            patch_values, size, dtype=dtype, kernel_init=xavier_uniform, bias_init=zeros, rngs=rngs
        )
        self.time_embed = SiTTimeEmbedding(size, rngs=rngs)
        if cfg.num_classes:
            rows = cfg.num_classes + cfg.null_class
            self.class_embed = nnx.Embed(rows, size, embedding_init=normal_002, rngs=rngs)
        self.pos_embed = nnx.Param(jnp.asarray(sincos_table(cfg.grid, size)))  # never trained
        self.blocks = stack_layers(lambda r: SiTBlock(cfg, rngs=r), cfg.depth, rngs.params())
        self.norm_out = layer_norm(size, jnp.float32, rngs)
        self.modulation_out = Linear(size, 2 * size, kernel_init=zeros, bias_init=zeros, rngs=rngs)
        outputs = patch_values * (2 if cfg.learn_sigma else 1)
        self.out = Linear(size, outputs, kernel_init=zeros, bias_init=zeros, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        y: Integer[Array, " b"] | None = None,
        *,
        key: Key[Array, "*b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """The model's prediction at (x, t), float32, of x's shape.

        Args:
            x: samples (b, h, w, c), of the configuration's `sample_shape`.
            t: times (b,) in [0, 1]; data at 1.
            y: None, or class labels (b,), as the configuration says.
            key: not used: nothing in this model is random. Every backbone takes it.

        Raises:
            ValueError: x or y does not fit the configuration.
        """
        del key
        cfg = self.cfg
        if x.shape[1:] != cfg.sample_shape:
            raise ValueError(f"x has shape {x.shape}: the model takes (batch, {', '.join(map(str, cfg.sample_shape))})")
        if cfg.num_classes and (y is None or y.ndim != 1):
            raise ValueError(f"y = {y}: a model with {cfg.num_classes} classes takes labels (batch,)")
        if not cfg.num_classes and y is not None:
            raise ValueError("y: this model takes no condition (num_classes = 0)")
        tokens = self.patch_embed(patchify(x, cfg.patch_size))
        tokens = tokens + jax.lax.stop_gradient(self.pos_embed[...]).astype(tokens.dtype)
        c = self.time_embed(t)
        if cfg.num_classes:
            c = c + self.class_embed(jnp.asarray(y))

        tokens = self._apply_blocks(tokens, c)

        shift, scale = jnp.split(self.modulation_out(jax.nn.silu(c)), 2, axis=-1)
        values = self.out(modulate(self.norm_out(tokens), shift, scale))
        shape = (*cfg.sample_shape[:2], self.out.out_features // cfg.patch_size**2)
        return unpatchify(values, shape, cfg.patch_size)[..., : cfg.channels]

    def null_condition(self, y: Integer[Array, " b"]) -> Integer[Array, " b"]:
        """The null class, of y's shape. Raises ValueError if the model has none."""
        if not self.cfg.null_class:
            raise ValueError(
                f"guidance needs a model that knows what no condition is: null_class = {self.cfg.null_class} and "
                f"num_classes = {self.cfg.num_classes}"
            )
        return jnp.full(y.shape, self.cfg.num_classes, jnp.int32)

    def _apply_blocks(self, tokens, c):
        """All blocks: a loop over the layers, so that compile time does not grow with depth."""
        graphdef, layers = nnx.split(self.blocks)

        def apply_block(tokens, layer):
            block = nnx.merge(graphdef, gathered(layer, self.cfg.dtype, self.cfg.depth))
            return placed(block(placed(tokens), c)), None

        apply_block = remat(apply_block, REMAT_POLICIES.get(self.cfg.remat))
        return jax.lax.scan(apply_block, tokens, layers)[0]


class SiTBlock(nnx.Module):
    """x += gate·attention(modulate(LN(x))); x += gate·MLP(modulate(LN(x))): adaLN-Zero, as in DiT."""

    def __init__(self, cfg: SiTConfig, *, rngs: nnx.Rngs):
        dtype, size = jnp.dtype(cfg.dtype), cfg.hidden_size
        self.norm_attention, self.norm_mlp = layer_norm(size, dtype, rngs), layer_norm(size, dtype, rngs)
        self.attention = SelfAttention(size, cfg.num_heads, dtype=dtype, rngs=rngs)
        self.mlp = MLP(size, cfg.mlp_size, dtype=dtype, rngs=rngs)
        self.modulation = Linear(size, 6 * size, dtype=dtype, kernel_init=zeros, bias_init=zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "b L hidden"], c: Float[Array, "b hidden"]) -> Float[Array, "b L hidden"]:
        shift, scale, gate, *of_mlp = jnp.split(self.modulation(jax.nn.silu(c)), 6, axis=-1)
        x = x + self.attention(modulate(self.norm_attention(x), shift, scale), None, gate)
        shift, scale, gate = of_mlp
        return x + self.mlp(modulate(self.norm_mlp(x), shift, scale), gate)


class SiTTimeEmbedding(nnx.Module):
    """Sinusoids of t → Linear → SiLU → Linear; t is in [0, 1] and not scaled."""

    frequencies = 256

    def __init__(self, hidden_size: int, *, rngs: nnx.Rngs):
        self.linear_in = nnx.Linear(self.frequencies, hidden_size, kernel_init=normal_002, bias_init=zeros, rngs=rngs)
        self.linear_out = nnx.Linear(hidden_size, hidden_size, kernel_init=normal_002, bias_init=zeros, rngs=rngs)

    def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b hidden"]:
        """Embeds t (b,), in float32 whatever the model computes in."""
        return self.linear_out(jax.nn.silu(self.linear_in(sinusoidal(t, self.frequencies))))

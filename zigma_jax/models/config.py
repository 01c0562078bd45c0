"""What a ZigMa is made of: one frozen dataclass, checked when it is made."""

import dataclasses
import math

from zigma_jax.errors import ConfigError

CHOICES = {
    "mixer": ("mamba", "mamba2", "attention"),
    "pos_embed": ("none", "sincos", "learned", "per_layer"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("auto", "none", "dots", "mixer", "block"),
}


@dataclasses.dataclass(frozen=True)
class ZigMaConfig:
    """Architecture and numerics of a `ZigMa`.

    Attributes:
        sample_shape: shape of one sample, channels last: `(h, w, c)`, or `(f, h, w, c)` for a video.
        patch_size: side of the square patches that become tokens; divides h and w.
        hidden_size: width of the token stream. Inner width, time-step rank and so on follow from it.
        depth: number of blocks.
        mixer: what mixes the tokens of a layer: "mamba" (the selective scan), "mamba2" (the scan with one decay a head,
            SSD) or "attention". The scans follow the visiting orders; to attention all orders are one.
        attention_every: every so many layers, the last one of each group has attention in place of the scan, and the
            scanning layers between share the orders out among themselves; 0 for no such layers.
        mlp_ratio: inner width over `hidden_size` of an MLP at the end of each block, as in DiT; 0 for no MLP.
        head_size: channels of a head, of attention and of "mamba2".
        qk_norm: attention normalises queries and keys.
        rotary: attention turns queries and keys by their token's place in the grid (RoPE).
        scan: the visiting orders by name, e.g. "zigzag8"; see `zigma_jax.models.orders.scan_orders`.
        scan_seed: seed of the "random<k>" orders, so that a checkpoint reproduces them.
        pos_embed: "none", "sincos" (fixed), "learned", or "per_layer" (learned, added before every block).
        temporal_pos_embed: adds a learned embedding of the frame number (video only).
        num_classes: number of class labels; 0 for a model without.
        null_class: one more class, with index `num_classes`, that stands for "no label": what label dropout
            trains and classifier-free guidance asks for.
        context_size: width of the text tokens given as `y`; 0 for a model without text.
        condition_scale: factor on what class embeddings and the projection of text start from. At the official
            scale (1) they are far smaller than the embedding of time, and a short run learns to ignore them.
        state_size: states per channel of the scan (n): 16 as a rule, for "mamba2" 64 to 128.
        conv_width: taps of the causal convolution, 2 to 4.
        expand: inner width of the mixer over `hidden_size`.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0. Training only.
        dtype: compute dtype of matrix products and activations. Parameters, the residual stream, norms, the
            scan's state and the output layer are float32 whatever it is.
        remat: what the backward pass recomputes: nothing ("none"), all but matrix products and scans ("dots"), all
            but the mixer's first product and its scan ("mixer"), or whole blocks ("block"). "auto" is "block" on a
            CPU, where it was measured faster than keeping anything, and "mixer" elsewhere.
        unroll: compiles every layer by itself, not a loop over them: that takes longer, but a training step need not
            copy what its backward pass reads into arrays of all layers.
        scan_implementation: passed to `zigma_kernels.selective_scan`; None picks the fastest that fits.

    Raises:
        ValueError: a field breaks its rule; the message names field, value and rule.
    """

    sample_shape: tuple[int, ...] = (32, 32, 4)
    patch_size: int = 1
    hidden_size: int = 768
    depth: int = 24
    mixer: str = "mamba"
    attention_every: int = 0
    mlp_ratio: float = 0.0
    head_size: int = 64
    qk_norm: bool = False
    rotary: bool = False
    scan: str = "zigzag8"
    scan_seed: int = 0
    pos_embed: str = "learned"
    temporal_pos_embed: bool = False
    num_classes: int = 0
    null_class: bool = False
    context_size: int = 0
    condition_scale: float = 1.0
    state_size: int = 16
    conv_width: int = 4
    expand: int = 2
    drop_path_rate: float = 0.1
    dtype: str = "float32"
    remat: str = "auto"
    unroll: bool = False
    scan_implementation: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "sample_shape", tuple(self.sample_shape))

        def require(ok: bool, field: str, rule: str):
            if not ok:
                raise ConfigError(f"ZigMaConfig.{field} = {getattr(self, field)!r}: {rule}")

        require(
            len(self.sample_shape) in (3, 4) and all(s > 0 for s in self.sample_shape),
            "sample_shape",
            "must be (height, width, channels) or (frames, height, width, channels), all positive",
        )
        for field in ("patch_size", "hidden_size", "depth", "state_size", "expand", "head_size"):
            require(getattr(self, field) >= 1, field, "must be at least 1")
        height, width = self.sample_shape[-3:-1]
        require(
            height % self.patch_size == 0 and width % self.patch_size == 0,
            "patch_size",
            f"must divide the sample's height and width, which are {height} × {width}",
        )
        require(2 <= self.conv_width <= 4, "conv_width", "must be 2, 3 or 4")
        require(self.num_classes >= 0, "num_classes", "must not be negative; 0 means no class labels")
        require(self.context_size >= 0, "context_size", "must not be negative; 0 means no text")
        require(
            not (self.num_classes and self.context_size),
            "context_size",
            f"class labels and text exclude each other, and num_classes = {self.num_classes}",
        )
        require(0 < self.condition_scale <= 1000, "condition_scale", "must be positive, and at most 1000")
        require(not self.null_class or self.num_classes > 0, "null_class", "needs num_classes > 0")
        require(
            not self.temporal_pos_embed or self.is_video,
            "temporal_pos_embed",
            "needs a video sample_shape (frames, height, width, channels)",
        )
        require(0 <= self.drop_path_rate < 1, "drop_path_rate", "must be at least 0 and below 1")
        for field, choices in CHOICES.items():
            require(getattr(self, field) in choices, field, f"must be one of {', '.join(choices)}")
        require(
            self.pos_embed != "sincos" or self.hidden_size % 4 == 0,
            "hidden_size",
            "must be a multiple of 4 for pos_embed = 'sincos' (sine and cosine of two axes)",
        )

        self._check_mixers(require)

    def _check_mixers(self, require):
        every = self.attention_every
        require(every == 0 or 2 <= every <= self.depth, "attention_every", f"must be 0, or 2 … depth = {self.depth}")
        require(not (every and self.mixer == "attention"), "attention_every", "every layer has it: mixer = 'attention'")
        require(0 <= self.mlp_ratio <= 64, "mlp_ratio", "must be in [0, 64]")
        require(
            not self.mlp_ratio or round(self.mlp_ratio * self.hidden_size) >= 1,
            "mlp_ratio",
            f"leaves the MLP no width, with hidden_size = {self.hidden_size}",
        )
        attends = self.mixer == "attention" or every > 0
        for uses, width in ((attends, "hidden_size"), (self.mixer == "mamba2", "inner_size")):
            size = getattr(self, width)
            require(not uses or size % self.head_size == 0, "head_size", f"must divide {width} = {size}")
        for field in ("qk_norm", "rotary"):
            require(attends or not getattr(self, field), field, "means something to attention alone, and there is none")
        require(
            not self.rotary or self.head_size >= 2 * len(self.grid),
            "head_size",
            f"must be at least {2 * len(self.grid)}, a pair for each axis of the grid, for rotary = True",
        )

    def attends(self, layer: int) -> bool:
        """Whether this layer has attention in place of a scan."""
        every = self.attention_every
        return self.mixer == "attention" or (every > 0 and layer % every == every - 1)

    @property
    def is_video(self) -> bool:
        return len(self.sample_shape) == 4

    @property
    def channels(self) -> int:
        return self.sample_shape[-1]

    @property
    def grid(self) -> tuple[int, ...]:
        """Token grid: (rows, columns), or (frames, rows, columns)."""
        *frames, height, width, _ = self.sample_shape
        return (*frames, height // self.patch_size, width // self.patch_size)

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def inner_size(self) -> int:
        """Channels of the selective scan (d)."""
        return self.expand * self.hidden_size

    @property
    def dt_rank(self) -> int:
        """Rank of the projection that makes the time steps."""
        return math.ceil(self.hidden_size / 16)

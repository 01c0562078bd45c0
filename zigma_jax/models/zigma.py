"""ZigMa: a diffusion backbone whose layers scan the tokens along a different path each (arXiv 2403.13802)."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Integer, Key
from zigma_kernels import GridPath, Visit
from zigma_kernels.dispatch import platform

from zigma_jax.models.blocks import Block
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.embeddings import TimeEmbedding, patchify, sincos_table, unpatchify
from zigma_jax.models.initializers import normal_002, scaled, torch_linear, xavier_uniform, zeros
from zigma_jax.models.linear import Linear
from zigma_jax.models.orders import scan_orders
from zigma_jax.models.placement import TOKENS, gathered, parts, placed, remat
from zigma_jax.models.text import Text, mean_over_tokens

# What a backward pass keeps of a layer beside its input.
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("selective_scan"),
    ),
    "mixer": jax.checkpoint_policies.save_only_these_names("in_proj", "selective_scan"),
    "block": jax.checkpoint_policies.nothing_saveable,
}


def remat_policy(remat: str):
    """The policy called so for `jax.checkpoint`, or None: everything is kept."""
    if remat == "auto":
        remat = "block" if platform() == "cpu" else "mixer"
    return REMAT_POLICIES.get(remat)


def stack_layers(make_layer, depth: int, key: Key[Array, ""]):
    """One module whose every parameter has a leading axis of `depth` layers, each initialised with its own key."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_layer(nnx.Rngs(0))))
    states = jax.vmap(lambda k: nnx.state(make_layer(nnx.Rngs(k))))(jax.random.split(key, depth))
    return nnx.merge(graphdef, states)


class ZigMa(nnx.Module):
    """The backbone: patches → tokens → `depth` blocks → patches.

    Args:
        cfg: architecture and numerics.
        rngs: `nnx.Rngs`; its `params` stream initialises the weights as the original does.

    Attributes:
        blocks: one `Block` whose parameters carry a leading axis of layers, (depth, …) but in a hybrid.
        attention_blocks: in a hybrid (`attention_every`), the same for the layers that attend.
        plan: the visiting orders: the i-th layer that scans does it along `plan.layer(i)`.
    """

    Config = ZigMaConfig

    def __init__(self, cfg: ZigMaConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(cfg.dtype)
        size, patch_values = cfg.hidden_size, cfg.patch_size**2 * cfg.channels
        self.cfg = cfg
        self.plan = scan_orders(cfg.scan, cfg.grid, seed=cfg.scan_seed)

        self.patch_embed = Linear(
            patch_values, size, dtype=dtype, kernel_init=xavier_uniform, bias_init=zeros, rngs=rngs
        )
        self.time_embed = TimeEmbedding(size, rngs=rngs)
        if cfg.num_classes:
            rows = cfg.num_classes + cfg.null_class
            init = scaled(normal_002, cfg.condition_scale)
            self.class_embed = nnx.Embed(rows, size, embedding_init=init, rngs=rngs)
        if cfg.context_size:
            init = scaled(torch_linear, cfg.condition_scale)
            self.context_embed = Linear(
                cfg.context_size, size, dtype=dtype, kernel_init=init, bias_init=zeros, rngs=rngs
            )
        if cfg.pos_embed in ("learned", "sincos"):
            learned = cfg.pos_embed == "learned"
            self.pos_embed = nnx.Param(
                jnp.zeros((cfg.num_tokens, size)) if learned else jnp.asarray(sincos_table(cfg.grid, size))
            )
        if cfg.temporal_pos_embed:
            self.temporal_pos_embed = nnx.Param(jnp.zeros((cfg.grid[0], size)))
        directions = 2 if self.plan.bidirectional else 1
        attending = cfg.depth // cfg.attention_every if cfg.attention_every else 0
        self.blocks = stack_layers(
            lambda r: Block(cfg, cfg.mixer, directions, rngs=r), cfg.depth - attending, rngs.params()
        )
        if attending:
            self.attention_blocks = stack_layers(
                lambda r: Block(cfg, "attention", directions, rngs=r), attending, rngs.params()
            )
        self.norm = nnx.RMSNorm(size, epsilon=1e-5, rngs=rngs)
        self.norm_out = nnx.LayerNorm(
            size, epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False, rngs=rngs
        )
        self.out = Linear(size, patch_values, kernel_init=torch_linear, bias_init=zeros, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b ..."],
        t: Float[Array, " b"],
        y: Integer[Array, " b"] | Float[Array, "b m context"] | Text | None = None,
        *,
        key: Key[Array, "*b"] | None = None,
    ) -> Float[Array, "b ..."]:
        """The model's prediction at (x, t), float32, of x's shape.

        Args:
            x: samples (b, [f,] h, w, c), of the configuration's `sample_shape`.
            t: times (b,) in [0, 1]; data at 1.
            y: None, class labels (b,), or text tokens (b, m, context_size), as the configuration says; a `Text` says
                which tokens are to be seen, and the others change nothing. A label outside [0, num_classes) cannot be
                seen under jit: check it where data enters.
            key: turns stochastic depth on, as in training: one key for the batch, or one a sample (b,).

        Raises:
            ValueError: x or y does not fit the configuration.
        """
        self._check(x, y)
        cfg = self.cfg
        tokens = self.patch_embed(patchify(x, cfg.patch_size))
        tokens = self._add_positions(tokens)
        c, text = self._condition(t, y)
        keep = None if key is None else drop_path_scales(key, x.shape[0], cfg.depth, cfg.drop_path_rate)

        residual = self._apply_blocks(tokens.astype(jnp.float32), c, text, keep)
        values = self.out(self.norm_out(self.norm(residual)))
        return unpatchify(values, cfg.sample_shape, cfg.patch_size)

    def null_condition(self, y: Integer[Array, " b"]) -> Integer[Array, " b"]:
        """What stands for no label, of y's shape: the null class.

        Its dtype is y's, or int32 where y's cannot hold the null class: uint8 ends at 255, the last of 256 classes.

        It is what guidance takes the model away from, and what training has to put in place of y now and then. For
        text that is the empty caption's tokens, which the text encoder has (`TextEncoder.null`) and the model has not.
        The original's text models were trained with a caption always, and sampled without guidance: the empty caption
        means no more to them than any other that they have not seen.

        Raises:
            ValueError: the model is conditioned on text, takes no condition, or has classes but no null class.
        """
        cfg = self.cfg
        if cfg.context_size:
            raise ValueError("no condition is the empty caption for a model of text: give its tokens, encoder.null")
        if not cfg.null_class:
            raise ValueError(
                f"guidance needs a model that knows what no condition is: null_class = {cfg.null_class} and "
                f"num_classes = {cfg.num_classes}, context_size = 0 (train with model.null_class = True, "
                "train.label_dropout = 0.1)"
            )
        y = jnp.asarray(y)
        fits = jnp.issubdtype(y.dtype, jnp.integer) and cfg.num_classes <= jnp.iinfo(y.dtype).max
        return jnp.full(y.shape, cfg.num_classes, y.dtype if fits else jnp.int32)

    def _check(self, x, y):
        cfg = self.cfg
        if x.shape[1:] != cfg.sample_shape:
            raise ValueError(f"x has shape {x.shape}: the model takes (batch, {', '.join(map(str, cfg.sample_shape))})")
        if cfg.num_classes and (y is None or isinstance(y, Text) or y.ndim != 1):
            raise ValueError(f"y = {_describe(y)}: a model with {cfg.num_classes} classes takes labels (batch,)")
        tokens = y.tokens if isinstance(y, Text) else y
        if cfg.context_size and (tokens is None or tokens.ndim != 3 or tokens.shape[-1] != cfg.context_size):
            raise ValueError(
                f"y = {_describe(tokens)}: a text-conditioned model takes tokens (batch, tokens, {cfg.context_size})"
            )
        mask = y.mask if isinstance(y, Text) else None
        if mask is not None and (mask.shape != y.tokens.shape[:2] or mask.dtype != bool):
            raise ValueError(f"y.mask = {_describe(mask)}: must be bool{list(y.tokens.shape[:2])}, one a token")
        if not (cfg.num_classes or cfg.context_size) and y is not None:
            raise ValueError(f"y = {_describe(y)}: this model takes no condition (num_classes = context_size = 0)")

    def _add_positions(self, tokens):
        cfg = self.cfg
        if cfg.pos_embed == "learned":
            tokens = tokens + self.pos_embed[...].astype(tokens.dtype)
        elif cfg.pos_embed == "sincos":
            tokens = tokens + jax.lax.stop_gradient(self.pos_embed[...]).astype(tokens.dtype)
        if cfg.temporal_pos_embed:
            frame = jnp.repeat(self.temporal_pos_embed[...], cfg.num_tokens // cfg.grid[0], axis=0)
            tokens = tokens + frame.astype(tokens.dtype)
        return tokens

    def _condition(self, t, y):
        """The vector that modulates every block (b, hidden), and the text, its tokens (b, m, hidden), or None."""
        c = self.time_embed(t)
        if self.cfg.num_classes:
            return c + self.class_embed(y), None
        if self.cfg.context_size:
            tokens, mask = y if isinstance(y, Text) else (y, None)
            if mask is not None:  # a hidden token weighs zero, and zero times NaN would be NaN
                tokens = jnp.where(mask[..., None], tokens, 0)
            text = Text(self.context_embed(jnp.asarray(tokens)), mask)
            return c + mean_over_tokens(*text), text
        return c, None

    def _apply_blocks(self, residual, c, text, keep):
        """All blocks: a scan over groups of layers, so that compile time does not grow with depth.

        A group is one layer, or as many as differ in more than their orders, which are data.
        """
        names = [name for name in ("blocks", "attention_blocks") if hasattr(self, name)]
        graphdefs, layers = zip(*(nnx.split(getattr(self, name)) for name in names), strict=True)
        size, orders, indices = self._orders()

        counts = [jax.tree.leaves(stack)[0].shape[0] for stack in layers]

        def apply_block(place, index, residual, layer, keep):
            """The layer at a place in its group, along the `index`-th of the orders that are there."""
            kind = int(len(names) > 1 and self.cfg.attends(place))
            along = tuple(each[index] if isinstance(each, Visit) else each for each in orders[place])
            block = nnx.merge(graphdefs[kind], gathered(layer, self.cfg.dtype, counts[kind]))
            return placed(block(placed(residual), c, text, along, keep))

        apply_block = remat(apply_block, remat_policy(self.cfg.remat), static_argnums=(0,))

        attending = size // self.cfg.attention_every if len(names) > 1 else 0
        groups, rest = divmod(self.cfg.depth, size)
        if keep is not None:
            residual = residual * keep[0][:, None, None]
            keep = jnp.stack([keep[:-1], keep[1:]], axis=1)
        stacks, counts = (*layers, indices, keep), (*(size - attending, attending)[: len(names)], size, size)

        def part(x, n, i):
            """Of n layers the i-th; of one it is what it is: untouched, the backward pass needs no copy of it."""
            return x if n == 1 else jax.tree.map(lambda a: a[i], x)

        def apply_layers(residual, xs, count=size, counts=counts):
            """The first `count` layers of a group; `xs`: those of `blocks`, those that attend, orders, keep."""
            used = [0] * len(names)
            for i in range(count):
                kind = int(len(names) > 1 and self.cfg.attends(i))
                layer = part(xs[kind], counts[kind], used[kind])
                index, scales = (part(x, counts[-1], i) for x in xs[-2:])
                residual = apply_block(i, index, residual, layer, scales)
                used[kind] += 1
            return residual, None

        def grouped(a, n):
            return a[:groups] if n == 1 else a[: groups * n].reshape(groups, n, *a.shape[1:])

        xs = [jax.tree.map(lambda a, n=n: grouped(a, n), stack) for stack, n in zip(stacks, counts, strict=True)]
        residual, _ = jax.lax.scan(apply_layers, residual, xs, unroll=self.cfg.unroll or 1)
        if rest:
            xs = [jax.tree.map(lambda a, n=n: a[groups * n :], stack) for stack, n in zip(stacks, counts, strict=True)]
            residual, _ = apply_layers(residual, xs, rest, (None,) * len(counts))
        return residual

    def _orders(self) -> tuple[int, list[tuple[GridPath | Visit, ...]], Integer[Array, " depth"]]:
        """Number of layers in a group; the orders at each place in it, one a direction; which one each layer takes.

        Where all groups have the same path, the order is that path; otherwise it is a table of paths, of as many
        segments each. Layers that are unrolled have their own code, so their own paths, too, and so have they all where
        their tokens are divided among devices.
        """
        cfg, plans, scanning = self.cfg, [], 0
        for layer in range(cfg.depth):
            plans.append(() if cfg.attends(layer) else self.plan.layer(scanning))
            scanning += not cfg.attends(layer)
        alike = [plan if cfg.unroll or parts(TOKENS) > 1 else tuple(path.segments for path in plan) for plan in plans]
        size = next(n for n in range(1, cfg.depth + 1) if all(a == alike[i % n] for i, a in enumerate(alike)))
        if cfg.attention_every and cfg.mixer != "attention":
            size = min(math.lcm(size, cfg.attention_every), cfg.depth)
        orders, indices = [], np.zeros(cfg.depth, np.int32)
        for place in range(size):
            distinct = list(dict.fromkeys(plans[place::size]))
            indices[place::size] = [distinct.index(plan) for plan in plans[place::size]]
            directions = zip(*distinct, strict=True)
            orders.append(distinct[0] if len(distinct) == 1 else tuple(Visit.table(paths) for paths in directions))
        return size, orders, jnp.asarray(indices)


def drop_path_scales(key: Key[Array, "*b"], batch: int, depth: int, rate: float) -> Float[Array, "layers b"]:
    """What stochastic depth multiplies each sample's branch with, layer by layer and before the final norm.

    (depth + 1, b): 0 with the layer's rate, else 1 / (1 − rate). Rates are [0] + linspace(0, rate, depth), the
    i-th of it for block i, and `rate` itself before the final norm. Each sample draws from its own key.
    """
    rates = np.concatenate([[0.0], np.linspace(0.0, rate, depth)[: depth - 1], [rate]]).astype(np.float32)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(batch)) if key.ndim == 0 else key
    drawn = jax.vmap(lambda k: jax.random.uniform(k, (depth + 1,)))(keys).T
    return jnp.where(drawn >= rates[:, None], 1.0 / (1.0 - rates[:, None]), 0.0)


def _describe(y) -> str:
    if isinstance(y, Text):
        return f"Text of {_describe(y.tokens)}"
    return "None" if y is None else f"{y.dtype}{list(y.shape)}"

"""Where each tensor of an official checkpoint lives in our parameters, and how the two layouts differ."""

import dataclasses
import re
from collections.abc import Callable, Iterator

import numpy as np

from zigma_jax.interop.weights import parameter_shapes
from zigma_jax.models.families import BackboneConfig, family_of


@dataclasses.dataclass(frozen=True)
class Convert:
    """How a tensor differs between the two layouts."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_official: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    official_shape: Callable[[tuple[int, ...], BackboneConfig], tuple[int, ...]]


SAME = Convert(lambda w: w, lambda w, _: w, lambda s, _: s)
LINEAR = Convert(lambda w: w.T, lambda w, _: w.T, lambda s, _: s[::-1])  # (out, in) ↔ (in, out)
CONV = Convert(lambda w: w[:, 0].T, lambda w, _: w.T[:, None], lambda s, _: (s[1], 1, s[0]))  # (d, 1, w) ↔ (w, d)
POSITIONS = Convert(lambda w: w[0], lambda w, _: w[None], lambda s, _: (1, *s))
PATCHES = Convert(  # (hidden, c, p, p) ↔ (p·p·c, hidden)
    lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),
    lambda w, shape: w.reshape(shape[2], shape[3], shape[1], shape[0]).transpose(3, 2, 0, 1),
    lambda s, cfg: (s[1], cfg.channels, cfg.patch_size, cfg.patch_size),
)

ZIGMA: dict[str, tuple[str, Convert]] = {
    "pos_embed": ("pos_embed", POSITIONS),
    "temporal_pos_embed": ("temporal_pos_embedding", POSITIONS),
    "patch_embed.kernel": ("x_embedder.proj.weight", PATCHES),
    "patch_embed.bias": ("x_embedder.proj.bias", SAME),
    "time_embed.linear_in.kernel": ("t_embedder.mlp.0.weight", LINEAR),
    "time_embed.linear_in.bias": ("t_embedder.mlp.0.bias", SAME),
    "time_embed.linear_out.kernel": ("t_embedder.mlp.2.weight", LINEAR),
    "time_embed.linear_out.bias": ("t_embedder.mlp.2.bias", SAME),
    "class_embed.embedding": ("y_embedder.embedding_table.weight", SAME),
    "context_embed.kernel": ("y_embedder.weight", LINEAR),
    "context_embed.bias": ("y_embedder.bias", SAME),
    "blocks.pos_embed": ("pos_embed_list.{layer}", POSITIONS),
    "blocks.mixer.in_proj.kernel": ("blocks.{layer}.mixer.in_proj.weight", LINEAR),
    "blocks.mixer.out_proj.kernel": ("blocks.{layer}.mixer.out_proj.weight", LINEAR),
    **{
        f"blocks.mixer.{ssm}.{ours}": (f"blocks.{{layer}}.mixer.{official}", convert)
        for ssm, b in (("ssm", ""), ("ssm_reverse", "_b"))
        for ours, official, convert in (
            ("A_log", f"A{b}_log", SAME),
            ("D", f"D{b}", SAME),
            ("conv_kernel", f"conv1d{b}.weight", CONV),
            ("conv_bias", f"conv1d{b}.bias", SAME),
            ("x_proj.kernel", f"x_proj{b}.weight", LINEAR),
            ("dt_proj.kernel", f"dt_proj{b}.weight", LINEAR),
            ("dt_bias", f"dt_proj{b}.bias", SAME),
        )
    },
    "blocks.norm.scale": ("blocks.{layer}.norm.weight", SAME),
    "blocks.modulation.kernel": ("blocks.{layer}.adaLN_modulation.1.weight", LINEAR),
    "blocks.modulation.bias": ("blocks.{layer}.adaLN_modulation.1.bias", SAME),
    "blocks.attention.query.kernel": ("blocks.{layer}.msa.to_q.weight", LINEAR),
    "blocks.attention.key.kernel": ("blocks.{layer}.msa.to_k.weight", LINEAR),
    "blocks.attention.value.kernel": ("blocks.{layer}.msa.to_v.weight", LINEAR),
    "blocks.attention.out.kernel": ("blocks.{layer}.msa.to_out.0.weight", LINEAR),
    "blocks.attention.out.bias": ("blocks.{layer}.msa.to_out.0.bias", SAME),
    "norm.scale": ("norm_f.weight", SAME),
    "out.kernel": ("final_layer.linear.weight", LINEAR),
    "out.bias": ("final_layer.linear.bias", SAME),
}


SIT: dict[str, tuple[str, Convert]] = {
    **{path: ZIGMA[path] for path in ZIGMA if path.split(".")[0] in ("pos_embed", "patch_embed", "time_embed", "out")},
    "class_embed.embedding": ("y_embedder.embedding_table.weight", SAME),
    **{
        f"{ours}.{part}": (f"{official}.{name}", convert)
        for ours, official in (
            ("blocks.attention.qkv", "blocks.{layer}.attn.qkv"),
            ("blocks.attention.proj", "blocks.{layer}.attn.proj"),
            ("blocks.mlp.linear_in", "blocks.{layer}.mlp.fc1"),
            ("blocks.mlp.linear_out", "blocks.{layer}.mlp.fc2"),
            ("blocks.modulation", "blocks.{layer}.adaLN_modulation.1"),
            ("modulation_out", "final_layer.adaLN_modulation.1"),
        )
        for part, name, convert in (("kernel", "weight", LINEAR), ("bias", "bias", SAME))
    },
}
TENSORS = {"zigma": ZIGMA, "sit": SIT}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One official tensor: its name and shape, and where it lives in our parameters."""

    name: str
    official_shape: tuple[int, ...]
    path: str
    layer: int | None
    convert: Convert


def entries(cfg: BackboneConfig) -> Iterator[Entry]:
    """Every tensor of this architecture: those that the official code has, and what it lacks under our own names."""
    shapes, table = parameter_shapes(cfg), TENSORS[family_of(cfg)]
    for path in [*(path for path in table if path in shapes), *(path for path in shapes if path not in table)]:
        name, convert = table.get(path) or (re.sub(r"^(\w*blocks)\.", r"\1.{layer}.", path), SAME)
        shape = shapes[path].shape
        if "{layer}" not in name:
            yield Entry(name, convert.official_shape(shape, cfg), path, None, convert)
        else:
            for layer in range(shape[0]):
                official_shape = convert.official_shape(shape[1:], cfg)
                yield Entry(name.format(layer=layer), official_shape, path, layer, convert)

"""What the shapes of an official state dict tell of its model."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from zigma_jax.errors import WeightsError
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.embeddings import sincos_table
from zigma_jax.models.sit import SiTConfig


def config_from_shapes(tensors: Mapping[str, np.ndarray], path: str) -> ZigMaConfig:
    """The architecture, if the tensors leave nothing open.

    They always tell width, depth, patch, channels, states and text; both directions of a scan are "sweep2". They don't
    tell the orders of another scan, the size of samples without positions, or whether the last class is the null class.

    Raises WeightsError naming what they tell and what they leave open.
    """
    shapes = {name: value.shape for name, value in tensors.items()}
    try:
        known, open_ = _known(shapes, tensors)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{path}: the file says nothing usable of its architecture under args.model.params, and its tensors do not "
            f"either ({error}); give it: load_official(path, config=ZigMaConfig(...)), or --config"
        ) from error
    if open_:
        told = ", ".join(f"{name}={value!r}" for name, value in known.items())
        raise WeightsError(
            f"{path}: the file says nothing usable of its architecture under args.model.params. Its tensors tell "
            f"{told}, but not {' and '.join(open_)}; "
            "give it whole: load_official(path, config=ZigMaConfig(...)), or --config"
        )
    return ZigMaConfig(**known)


HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Of the published sizes of SiT, by width."""


def sit_config_from_shapes(tensors: Mapping[str, np.ndarray], path: str, num_heads: int | None = None) -> SiTConfig:
    """The architecture of a SiT, whose last class is the null class, as in all that its authors' code trains.

    num_heads: what the tensors do not tell; None: as in the published size of this width.

    Raises WeightsError for tensors of something else, and for a width that was not published without `num_heads`.
    """
    shapes = {name: value.shape for name, value in tensors.items()}
    try:
        width, channels, patch, _ = shapes["x_embedder.proj.weight"]
        side = math.isqrt(shapes["pos_embed"][1])
        if side * side != shapes["pos_embed"][1]:
            raise ValueError(f"{shapes['pos_embed'][1]} positions are no square")
        outputs = shapes["final_layer.linear.weight"][0] // (patch * patch)
        known: dict[str, Any] = {
            "sample_shape": (side * patch, side * patch, channels),
            "patch_size": patch,
            "hidden_size": width,
            "depth": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
            "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / width,
            "num_classes": shapes["y_embedder.embedding_table.weight"][0] - 1,
            "learn_sigma": outputs == 2 * channels,
        }
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{path}: its tensors are not those of a SiT ({error})") from error
    heads = num_heads or HEADS.get(width)
    if heads is None:
        raise WeightsError(
            f"{path}: no SiT of width {width} was published, and nothing tells how many heads it has: give num_heads"
        )
    return SiTConfig(**known, num_heads=heads)


def _known(
    shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], list[str]]:
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    inner, states = shapes["blocks.0.mixer.A_log"]
    known: dict[str, Any] = {
        "patch_size": patch,
        "hidden_size": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "state_size": states,
        "conv_width": shapes["blocks.0.mixer.conv1d.weight"][-1],
        "expand": inner // width,
        "temporal_pos_embed": "temporal_pos_embedding" in shapes,
    }
    open_ = []
    if "blocks.0.mixer.A_b_log" in shapes:
        known["scan"] = "sweep2"
    else:
        open_.append("scan (the orders in which tokens are visited, such as 'zigzag8')")
    if "y_embedder.weight" in shapes:
        known["context_size"] = shapes["y_embedder.weight"][1]
    elif "y_embedder.embedding_table.weight" in shapes:
        rows = shapes["y_embedder.embedding_table.weight"][0]
        open_.append(f"num_classes and null_class ({rows} classes, or {rows - 1} and the null class)")
    frames = shapes["temporal_pos_embedding"][1] if known["temporal_pos_embed"] else None
    tokens = shapes["pos_embed"][1] if "pos_embed" in shapes else 0
    side = math.isqrt(tokens // (frames or 1))
    if tokens and side * side * (frames or 1) == tokens:
        known["sample_shape"] = (*((frames,) if frames else ()), side * patch, side * patch, channels)
        grid = (*((frames,) if frames else ()), side, side)
        fixed = width % 4 == 0 and np.allclose(tensors["pos_embed"][0], sincos_table(grid, width), atol=1e-3)
        known["pos_embed"] = "sincos" if fixed else "learned"
    else:
        open_.append(f"sample_shape (of {channels} channels) and pos_embed")
    return known, open_

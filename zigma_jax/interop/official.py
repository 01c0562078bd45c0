"""Checkpoints of the official PyTorch code (CompVis/zigma): read and written without torch."""

import dataclasses
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np

from zigma_jax.errors import WeightsError
from zigma_jax.interop.shapes import config_from_shapes
from zigma_jax.interop.state_dict import find_arguments, find_state_dict
from zigma_jax.interop.torch_file import read_torch, write_torch
from zigma_jax.interop.weights import (
    check_shapes,
    config_from_dict,
    flat_parameters,
    model_from_parameters,
    parameter_shapes,
)
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.zigma import ZigMa

_POS_EMBED = ("none", "sincos", "learned", "per_layer")  # position = the official `use_pe`
_SCAN_PREFIXES = {  # ours → official, each followed by the number of paths
    "zigzag": "zigzagN",
    "official_hilbert": "hilbertN",
    "random": "randomN",
}


def load_official(
    path: str | os.PathLike,
    *,
    weights: Literal["ema", "model"] = "ema",
    config: ZigMaConfig | None = None,
    fallback: ZigMaConfig | None = None,
) -> ZigMa:
    """A `ZigMa` with the weights of an official checkpoint. Nothing in the file is executed.

    Args:
        path: a PyTorch file of any name: a training checkpoint (`model`, `ema`, `args`, …), Lightning's, or a bare
            state dict; prefixes such as `module.` and `_orig_mod.` are taken off, see `find_state_dict`.
        weights: which of a training checkpoint's two sets.
        config: the architecture. None reads it from the file: its arguments (`args.model.params`), else the tensors'
            shapes, where they leave nothing open.
        fallback: the architecture of a file that does not tell it.

    Raises:
        WeightsError: not such a file; architecture in neither the file nor `config`; tensors missing, unexpected
            or mis-shaped (all listed by name); an unsafe pickle (see `torch_file`).
    """
    contents = read_torch(path)
    tensors = find_state_dict(contents, weights, os.fspath(path))
    if other := [f"{name} ({_describe(value)})" for name, value in tensors.items() if not _is_numbers(value)]:
        raise WeightsError(f"{path}: not tensors of floating-point numbers: {', '.join(other[:12])}")
    if config is None:
        config = _config_from_file(contents, tensors, path, fallback)
    if config.pos_embed == "per_layer":
        tensors = _with_per_layer_positions(tensors, config)
    expected = {entry.name: entry.official_shape for entry in _entries(config)}
    check_shapes(expected, {name: value.shape for name, value in tensors.items()}, os.fspath(path))

    stacked: dict[str, Any] = {}
    for entry in _entries(config):
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused as such later
            value = entry.convert.to_ours(np.asarray(tensors[entry.name], np.float32))
        if entry.layer is None:
            stacked[entry.path] = value
        else:
            stacked.setdefault(entry.path, []).append(value)
    parameters = {path: np.stack(v) if isinstance(v, list) else v for path, v in stacked.items()}
    return model_from_parameters(config, parameters, os.fspath(path))


def save_official(model: ZigMa, path: str | os.PathLike, *, train_steps: int = 0) -> None:
    """Writes the model as an official checkpoint, the same weights under `model` and `ema`.

    Beside the official `args.model.params` the file carries the whole configuration under `zigma_jax`, so that
    `load_official` gives back this model to the bit, also where the original has no such architecture.
    """
    state = official_tensors(model)
    write_torch(
        path,
        {
            "model": state,
            "ema": OrderedDict(state),
            "opt": {},
            "args": {"model": {"params": _official_params(model.cfg)}},
            "train_steps": train_steps,
            "best_fid": 666,
            "zigma_jax": {"config": dataclasses.asdict(model.cfg)},
        },
    )


def official_tensors(model: ZigMa) -> OrderedDict[str, np.ndarray]:
    """The model's parameters under their official names and in their official layouts."""
    parameters = flat_parameters(model)
    tensors = OrderedDict()
    for entry in _entries(model.cfg):
        value = parameters[entry.path] if entry.layer is None else parameters[entry.path][entry.layer]
        tensors[entry.name] = np.ascontiguousarray(entry.convert.to_official(value, entry.official_shape))
    return tensors


@dataclasses.dataclass(frozen=True)
class _Convert:
    """How a tensor differs between the two layouts."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_official: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    official_shape: Callable[[tuple[int, ...], ZigMaConfig], tuple[int, ...]]


_SAME = _Convert(lambda w: w, lambda w, _: w, lambda s, _: s)
_LINEAR = _Convert(lambda w: w.T, lambda w, _: w.T, lambda s, _: s[::-1])  # (out, in) ↔ (in, out)
_CONV = _Convert(lambda w: w[:, 0].T, lambda w, _: w.T[:, None], lambda s, _: (s[1], 1, s[0]))  # (d, 1, w) ↔ (w, d)
_POSITIONS = _Convert(lambda w: w[0], lambda w, _: w[None], lambda s, _: (1, *s))
_PATCHES = _Convert(  # (hidden, c, p, p) ↔ (p·p·c, hidden)
    lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),
    lambda w, shape: w.reshape(shape[2], shape[3], shape[1], shape[0]).transpose(3, 2, 0, 1),
    lambda s, cfg: (s[1], cfg.channels, cfg.patch_size, cfg.patch_size),
)

_TENSORS: dict[str, tuple[str, _Convert]] = {
    "pos_embed": ("pos_embed", _POSITIONS),
    "temporal_pos_embed": ("temporal_pos_embedding", _POSITIONS),
    "patch_embed.kernel": ("x_embedder.proj.weight", _PATCHES),
    "patch_embed.bias": ("x_embedder.proj.bias", _SAME),
    "time_embed.linear_in.kernel": ("t_embedder.mlp.0.weight", _LINEAR),
    "time_embed.linear_in.bias": ("t_embedder.mlp.0.bias", _SAME),
    "time_embed.linear_out.kernel": ("t_embedder.mlp.2.weight", _LINEAR),
    "time_embed.linear_out.bias": ("t_embedder.mlp.2.bias", _SAME),
    "class_embed.embedding": ("y_embedder.embedding_table.weight", _SAME),
    "context_embed.kernel": ("y_embedder.weight", _LINEAR),
    "context_embed.bias": ("y_embedder.bias", _SAME),
    "blocks.pos_embed": ("pos_embed_list.{layer}", _POSITIONS),
    "blocks.mixer.in_proj.kernel": ("blocks.{layer}.mixer.in_proj.weight", _LINEAR),
    "blocks.mixer.out_proj.kernel": ("blocks.{layer}.mixer.out_proj.weight", _LINEAR),
    **{
        f"blocks.mixer.{ssm}.{ours}": (f"blocks.{{layer}}.mixer.{official}", convert)
        for ssm, b in (("ssm", ""), ("ssm_reverse", "_b"))
        for ours, official, convert in (
            ("A_log", f"A{b}_log", _SAME),
            ("D", f"D{b}", _SAME),
            ("conv_kernel", f"conv1d{b}.weight", _CONV),
            ("conv_bias", f"conv1d{b}.bias", _SAME),
            ("x_proj.kernel", f"x_proj{b}.weight", _LINEAR),
            ("dt_proj.kernel", f"dt_proj{b}.weight", _LINEAR),
            ("dt_bias", f"dt_proj{b}.bias", _SAME),
        )
    },
    "blocks.norm.scale": ("blocks.{layer}.norm.weight", _SAME),
    "blocks.modulation.kernel": ("blocks.{layer}.adaLN_modulation.1.weight", _LINEAR),
    "blocks.modulation.bias": ("blocks.{layer}.adaLN_modulation.1.bias", _SAME),
    "blocks.attention.query.kernel": ("blocks.{layer}.msa.to_q.weight", _LINEAR),
    "blocks.attention.key.kernel": ("blocks.{layer}.msa.to_k.weight", _LINEAR),
    "blocks.attention.value.kernel": ("blocks.{layer}.msa.to_v.weight", _LINEAR),
    "blocks.attention.out.kernel": ("blocks.{layer}.msa.to_out.0.weight", _LINEAR),
    "blocks.attention.out.bias": ("blocks.{layer}.msa.to_out.0.bias", _SAME),
    "norm.scale": ("norm_f.weight", _SAME),
    "out.kernel": ("final_layer.linear.weight", _LINEAR),
    "out.bias": ("final_layer.linear.bias", _SAME),
}


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One official tensor: its name and shape, and where it lives in our parameters."""

    name: str
    official_shape: tuple[int, ...]
    path: str
    layer: int | None
    convert: _Convert


def _entries(cfg: ZigMaConfig) -> Iterator[_Entry]:
    """Every tensor that the official code has for this architecture."""
    shapes = parameter_shapes(cfg)
    for path, (name, convert) in _TENSORS.items():
        if path not in shapes:
            continue
        shape = shapes[path].shape
        if "{layer}" not in name:
            yield _Entry(name, convert.official_shape(shape, cfg), path, None, convert)
        else:
            for layer in range(cfg.depth):
                official_shape = convert.official_shape(shape[1:], cfg)
                yield _Entry(name.format(layer=layer), official_shape, path, layer, convert)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and (value.dtype.kind == "f" or value.dtype == ml_dtypes.bfloat16)


def _describe(value: Any) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else getattr(value, "name", type(value).__name__)


def _with_per_layer_positions(tensors, cfg: ZigMaConfig) -> dict[str, np.ndarray]:
    """The original neither trains nor saves its per-layer positions: they are zero where the file has none."""
    zero = np.zeros((1, cfg.num_tokens, cfg.hidden_size), np.float32)
    return {f"pos_embed_list.{i}": zero for i in range(cfg.depth)} | dict(tensors)


def _config_from_file(
    contents: Mapping, tensors: Mapping[str, np.ndarray], path, fallback: ZigMaConfig | None
) -> ZigMaConfig:
    if isinstance(contents.get("zigma_jax"), Mapping):
        return config_from_dict(contents["zigma_jax"]["config"], os.fspath(path))
    params = find_arguments(contents, ("in_channels", "embed_dim", "depth", "img_dim"))
    if params is None:
        return fallback or config_from_shapes(tensors, os.fspath(path))
    frames = params.get("video_frames") or 0
    side = params["img_dim"]
    table = tensors.get("y_embedder.embedding_table.weight")
    ssm = params.get("ssm_cfg") or {}
    try:
        num_classes = max(params.get("num_classes") or 0, 0)
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return ZigMaConfig(
            sample_shape=(*([frames] if frames else []), height, width, params["in_channels"]),
            patch_size=params.get("patch_size", 1),
            hidden_size=params["embed_dim"],
            depth=params["depth"],
            scan=_scan_from_official(params.get("scan_type", "v2"), path),
            pos_embed=_POS_EMBED[params.get("use_pe", 0)],
            temporal_pos_embed=bool(params.get("tpe", False)),
            num_classes=0 if params.get("has_text") else num_classes,
            null_class=table is not None and table.shape[0] == num_classes + 1,
            context_size=params.get("d_context", 0) if params.get("has_text") else 0,
            drop_path_rate=params.get("drop_path_rate", 0.1),
            **{
                ours: ssm[name]
                for ours, name in (("state_size", "d_state"), ("conv_width", "d_conv"), ("expand", "expand"))
                if name in ssm
            },
        )
    except WeightsError:
        raise
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise WeightsError(f"{path}: the model's arguments in the file are no architecture: {error}") from error


def _scan_from_official(scan_type: str, path) -> str:
    if scan_type == "v2":
        return "sweep2"
    if scan_type.startswith("zzvideo_"):
        return "video_" + scan_type.removeprefix("zzvideo_")
    if scan_type.startswith("randomN"):
        raise WeightsError(
            f"{path}: scan_type {scan_type!r} was drawn when the model was built and is not in the file; "
            "give the architecture with the orders it was trained with, or another scan, as `config`"
        )
    for ours, official in _SCAN_PREFIXES.items():
        if scan_type.startswith(official):
            return ours + scan_type.removeprefix(official)
    raise WeightsError(f"{path}: scan_type {scan_type!r} is not one of v2, zigzagN<k>, hilbertN<k>, zzvideo_<letters>")


def _official_params(cfg: ZigMaConfig) -> dict[str, Any]:
    """`args.model.params` of the original. A scan that it lacks keeps our name, which it refuses."""
    scan = "v2" if cfg.scan == "sweep2" else cfg.scan
    for ours, official in (*_SCAN_PREFIXES.items(), ("video_", "zzvideo_")):
        if scan.startswith(ours) and not scan.startswith("zigzag3d"):
            scan = official + scan.removeprefix(ours)
            break
    height, width = cfg.sample_shape[-3:-1]
    return {
        "scan_type": scan,
        "use_pe": _POS_EMBED.index(cfg.pos_embed),
        "tpe": cfg.temporal_pos_embed,
        "video_frames": cfg.sample_shape[0] if cfg.is_video else 0,
        "has_text": cfg.context_size > 0,
        "d_context": cfg.context_size,
        "num_classes": cfg.num_classes or -1,
        "in_channels": cfg.channels,
        "embed_dim": cfg.hidden_size,
        "depth": cfg.depth,
        "img_dim": height if height == width else [height, width],
        "patch_size": cfg.patch_size,
        "drop_path_rate": cfg.drop_path_rate,
        "ssm_cfg": {"d_state": cfg.state_size, "d_conv": cfg.conv_width, "expand": cfg.expand},
    }

"""Checkpoints of the official PyTorch code (CompVis/zigma): read and written without torch."""

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from zigma_jax.errors import ConfigError, WeightsError
from zigma_jax.interop.file_kind import file_kind
from zigma_jax.interop.layouts import TENSORS, entries
from zigma_jax.interop.shapes import config_from_shapes, sit_config_from_shapes
from zigma_jax.interop.state_dict import find_arguments, find_state_dict
from zigma_jax.interop.torch_file import read_torch, write_torch
from zigma_jax.interop.weights import check_shapes, config_from_dict, flat_parameters, model_from_parameters
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.families import BackboneConfig, Model, config_to_dict, family_of
from zigma_jax.models.sit import SiT
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
    family: str = "zigma",
    weights: Literal["ema", "model"] = "ema",
    config: BackboneConfig | None = None,
    fallback: BackboneConfig | None = None,
    num_heads: int | None = None,
) -> ZigMa | SiT:
    """A model with the weights of its authors' checkpoint. Nothing in the file is executed.

    Args:
        path: a PyTorch file of any name: a training checkpoint (`model`, `ema`, `args`, …), Lightning's, or a bare
            state dict; prefixes such as `module.` and `_orig_mod.` are taken off, see `find_state_dict`. Or a
            safetensors file with the same names.
        family: "zigma", or "sit" for SiT's.
        weights: which of a training checkpoint's two sets.
        config: the architecture. None reads it from the file: a ZigMa's arguments (`args.model.params`), else the
            tensors' shapes, where they leave nothing open.
        fallback: the architecture of a file that does not tell it.
        num_heads: of a SiT, which its tensors do not tell; None: as in the published sizes.

    Raises:
        ConfigError: an unknown family, or a configuration of another one.
        WeightsError: not such a file; architecture in neither the file nor `config`; tensors missing, unexpected
            or mis-shaped (all listed by name); an unsafe pickle (see `torch_file`).
    """
    if family not in TENSORS:
        raise ConfigError(f"family = {family!r}: must be one of {', '.join(TENSORS)}")
    if config is not None and family_of(config) != family:
        raise ConfigError(f"family = {family!r}, but config is a {type(config).__name__}")
    if num_heads is not None and family != "sit":
        raise ConfigError(f"num_heads = {num_heads}: a {family} has none")
    contents = load_file(path) if file_kind(path) == "safetensors" else read_torch(path)
    tensors = find_state_dict(contents, weights, os.fspath(path))
    if other := [f"{name} ({_describe(value)})" for name, value in tensors.items() if not _is_numbers(value)]:
        raise WeightsError(f"{path}: not tensors of floating-point numbers: {', '.join(other[:12])}")
    if config is None:
        said: Any = contents.get("zigma_jax")
        if isinstance(said, Mapping):
            config = config_from_dict(said["config"], os.fspath(path))
        elif family == "sit":
            config = fallback or sit_config_from_shapes(tensors, os.fspath(path), num_heads)
        else:
            config = _config_from_file(contents, tensors, path, fallback)
    if isinstance(config, ZigMaConfig) and config.pos_embed == "per_layer":
        tensors = _with_per_layer_positions(tensors, config)
    expected = {entry.name: entry.official_shape for entry in entries(config)}
    check_shapes(expected, {name: value.shape for name, value in tensors.items()}, os.fspath(path))

    stacked: dict[str, Any] = {}
    for entry in entries(config):
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused as such later
            value = entry.convert.to_ours(np.asarray(tensors[entry.name], np.float32))
        if entry.layer is None:
            stacked[entry.path] = value
        else:
            stacked.setdefault(entry.path, []).append(value)
    parameters = {path: np.stack(v) if isinstance(v, list) else v for path, v in stacked.items()}
    return model_from_parameters(config, parameters, os.fspath(path))


def save_official(model: Model, path: str | os.PathLike, *, train_steps: int = 0) -> None:
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
            "args": {"model": {"params": _official_params(model.cfg)}} if isinstance(model, ZigMa) else {},
            "train_steps": train_steps,
            "best_fid": 666,
            "zigma_jax": {"config": config_to_dict(model.cfg)},
        },
    )


def official_tensors(model: Model) -> OrderedDict[str, np.ndarray]:
    """The model's parameters under their official names and in their official layouts."""
    if family_of(model.cfg) not in TENSORS:
        raise ConfigError(f"family = {family_of(model.cfg)!r}: there is no official form of it; write safetensors")
    parameters = flat_parameters(model)
    tensors = OrderedDict()
    for entry in entries(model.cfg):
        value = parameters[entry.path] if entry.layer is None else parameters[entry.path][entry.layer]
        tensors[entry.name] = np.ascontiguousarray(entry.convert.to_official(value, entry.official_shape))
    return tensors


def _is_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and (value.dtype.kind == "f" or value.dtype == ml_dtypes.bfloat16)


def _describe(value: Any) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else getattr(value, "name", type(value).__name__)


def _with_per_layer_positions(tensors, cfg: ZigMaConfig) -> dict[str, np.ndarray]:
    """The original neither trains nor saves its per-layer positions: they are zero where the file has none."""
    zero = np.zeros((1, cfg.num_tokens, cfg.hidden_size), np.float32)
    return {f"pos_embed_list.{i}": zero for i in range(cfg.depth)} | dict(tensors)


def _config_from_file(
    contents: Mapping, tensors: Mapping[str, np.ndarray], path, fallback: BackboneConfig | None
) -> BackboneConfig:
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

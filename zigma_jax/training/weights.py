"""Weights from and to wherever they are: a workdir, an official .pt, safetensors, bare orbax parameters."""

import dataclasses
import json
from pathlib import Path

from flax import nnx

from zigma_jax.interop import load_official, load_safetensors, save_official, save_safetensors
from zigma_jax.interop.weights import abstract_model, config_from_dict
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.zigma import ZigMa
from zigma_jax.training.array_store import load_params, save_params
from zigma_jax.training.checkpoint import Checkpointer
from zigma_jax.training.config import RunConfig
from zigma_jax.training.files import write_atomically
from zigma_jax.training.parse_config import from_dict


def load_weights(source: Path, weights: str = "ema") -> tuple[ZigMa, RunConfig | None]:
    """The model that `source` holds, and the configuration it was trained with if `source` is a workdir.

    Args:
        source: a workdir of `zigma_jax.train` (its newest sound checkpoint), an official .pt file, a
            .safetensors file, or a directory of bare orbax parameters as `save_weights` writes it.
        weights: "ema" or "raw": the averaged or the last ones, where there are both.

    Raises:
        ValueError: `source` is none of these. CheckpointError: no sound checkpoint.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights = {weights!r}: must be 'ema' or 'raw'")
    if source.suffix == ".pt":
        return load_official(source, weights="ema" if weights == "ema" else "model"), None
    if source.suffix == ".safetensors":
        return load_safetensors(source), None
    if (source / "checkpoints").is_dir():
        with Checkpointer(source / "checkpoints") as checkpoints:
            config = from_dict(checkpoints.read_extra()["config"])
            name = "ema" if weights == "ema" else "params"
            state, _, _ = checkpoints.restore({name: _abstract_params(config.model)}, partial=True)
        return _with_params(config.model, state[name]), config
    if (source / "params").is_dir():
        cfg = config_from_dict(json.loads((source / "config.json").read_text()), str(source))
        return _with_params(cfg, load_params(source / "params", _abstract_params(cfg))), None
    raise ValueError(
        f"{source}: no workdir with checkpoints, no .pt, no .safetensors and no directory of orbax parameters"
    )


def save_weights(model: ZigMa, target: Path) -> None:
    """Writes an official .pt, a .safetensors, or, for any other name, a directory of bare orbax parameters.

    The directory holds `params`, which orbax alone can read, and `config.json`, the model's configuration.

    Raises:
        ValueError: `target` exists.
    """
    if target.exists():
        raise ValueError(f"{target} exists; choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".pt":
        save_official(model, target)
    elif target.suffix == ".safetensors":
        save_safetensors(model, target)
    else:
        save_params(target / "params", params_of(model))
        write_atomically(target / "config.json", json.dumps(dataclasses.asdict(model.cfg), indent=1).encode())


def params_of(model: ZigMa) -> dict:
    """The parameters as the nested dicts that training works on."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _abstract_params(cfg: ZigMaConfig) -> dict:
    return params_of(abstract_model(cfg))


def _with_params(cfg: ZigMaConfig, params: dict) -> ZigMa:
    return nnx.merge(nnx.graphdef(abstract_model(cfg)), params)

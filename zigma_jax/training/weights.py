"""Weights from and to wherever they are: a workdir, an official .pt, safetensors, bare orbax parameters."""

import dataclasses
import json
from pathlib import Path

from flax import nnx

from zigma_jax.files import write_atomically
from zigma_jax.interop import load_official, load_safetensors, save_official, save_safetensors
from zigma_jax.interop.weights import abstract_model, config_from_dict
from zigma_jax.models.config import ZigMaConfig
from zigma_jax.models.zigma import ZigMa
from zigma_jax.training.array_store import load_params, save_params
from zigma_jax.training.best import best_step
from zigma_jax.training.checkpoint import Checkpointer
from zigma_jax.training.config import RunConfig
from zigma_jax.training.parse_config import from_dict


def load_weights(source: Path, weights: str = "ema", checkpoint: str = "latest") -> tuple[ZigMa, RunConfig | None]:
    """The model that `source` holds, and the configuration it was trained with if `source` is a workdir.

    Args:
        source: a workdir of `zigma_jax.train`, an official .pt file, a .safetensors file, or a directory of bare
            orbax parameters as `save_weights` writes it.
        weights, checkpoint: as `load_workdir` has them; of other sources than workdirs there is one checkpoint.

    Raises:
        ValueError: `source` is none of these. Otherwise as `load_workdir`.
    """
    _check_weights(weights)
    if is_workdir(source):
        return load_workdir(source, weights, checkpoint)[:2]
    if checkpoint != "latest":
        raise ValueError(f"checkpoint = {checkpoint!r}: {source} is no workdir of zigma_jax.train, and has only one")
    if source.suffix == ".pt":
        return load_official(source, weights="ema" if weights == "ema" else "model"), None
    if source.suffix == ".safetensors":
        return load_safetensors(source), None
    if (source / "params").is_dir():
        cfg = config_from_dict(json.loads((source / "config.json").read_text()), str(source))
        return _with_params(cfg, load_params(source / "params", _abstract_params(cfg))), None
    raise ValueError(
        f"{source}: no workdir with checkpoints, no .pt, no .safetensors and no directory of orbax parameters"
    )


def load_workdir(workdir: Path, weights: str = "ema", checkpoint: str = "latest") -> tuple[ZigMa, RunConfig, int]:
    """The model of a run of `zigma_jax.train`, its configuration, and the step that it is of.

    Args:
        workdir: the run's.
        weights: "ema" or "raw": the averaged or the last ones.
        checkpoint: "latest", the newest sound one; "best", as evaluations during training found; or a step.

    Raises:
        ValueError: no such weights, or no best checkpoint. CheckpointError: no sound checkpoint.
    """
    _check_weights(weights)
    if checkpoint not in ("latest", "best") and not checkpoint.isdecimal():
        raise ValueError(f"checkpoint = {checkpoint!r}: must be 'latest', 'best' or a step")
    wanted = None if checkpoint == "latest" else best_step(workdir) if checkpoint == "best" else int(checkpoint)
    with Checkpointer(workdir / "checkpoints") as checkpoints:
        config = from_dict(checkpoints.read_extra()["config"])
        name = "ema" if weights == "ema" else "params"
        state, _, step = checkpoints.restore({name: _abstract_params(config.model)}, wanted, partial=True)
    return _with_params(config.model, state[name]), config, step


def is_workdir(source: Path) -> bool:
    """Whether a run of `zigma_jax.train` lives there."""
    return (source / "checkpoints").is_dir()


def is_model(source: Path) -> bool:
    """Whether `source` is named, or laid out, as what `load_weights` loads."""
    return is_workdir(source) or source.suffix in (".pt", ".safetensors") or (source / "params").is_dir()


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


def _check_weights(weights: str) -> None:
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights = {weights!r}: must be 'ema' or 'raw'")


def _abstract_params(cfg: ZigMaConfig) -> dict:
    return params_of(abstract_model(cfg))


def _with_params(cfg: ZigMaConfig, params: dict) -> ZigMa:
    return nnx.merge(nnx.graphdef(abstract_model(cfg)), params)

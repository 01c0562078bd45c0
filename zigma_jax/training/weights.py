"""Weights from and to wherever they are: a workdir, an official .pt, safetensors, bare orbax parameters."""

import json

import jax.numpy as jnp
from flax import nnx

from zigma_jax.errors import ConfigError, WeightsError
from zigma_jax.files import AnyPath, in_bucket, make_directory, read_locally, write_atomically, written_locally
from zigma_jax.interop import load_official, load_safetensors, save_official, save_safetensors
from zigma_jax.interop.file_kind import file_kind
from zigma_jax.interop.layouts import TENSORS
from zigma_jax.interop.weights import abstract_model, config_from_dict
from zigma_jax.models.families import BackboneConfig, Model, config_to_dict, family_of
from zigma_jax.training.array_store import flatten, load_params, save_params
from zigma_jax.training.best import best_step
from zigma_jax.training.checkpoint import Checkpointer
from zigma_jax.training.config import RunConfig
from zigma_jax.training.parse_config import from_dict
from zigma_jax.training.state import average_name

_TORCH, _SAFETENSORS = (".pt", ".pth", ".ckpt", ".bin"), ".safetensors"
FILE_SUFFIXES = (*_TORCH, _SAFETENSORS)
_OTHER = (
    ".npz",
    ".npy",
    ".h5",
    ".hdf5",
    ".pkl",
    ".pickle",
    ".onnx",
    ".msgpack",
    ".gguf",
    ".json",
    ".zip",
    ".tar",
    ".gz",
)


def load_weights(
    source: AnyPath,
    weights: str = "ema",
    checkpoint: str = "latest",
    architecture: BackboneConfig | None = None,
    family: str | None = None,
) -> tuple[Model, RunConfig | None]:
    """The model that `source` holds, and the configuration it was trained with if `source` is a workdir.

    Args:
        source: a workdir of `zigma_jax.train`, an official PyTorch file or a safetensors file of any name, or a
            directory of bare orbax parameters as `save_weights` writes it.
        weights, checkpoint: as `load_workdir` has them; of other sources than workdirs there is one checkpoint.
        architecture: of files that do not tell theirs.
        family: whose official file it is, "sit" for SiT's; None: that of `architecture`, or "zigma".

    Raises:
        WeightsError: `source` is none of these, or has weights that are NaN or infinite. Otherwise as `load_workdir`.
    """
    _check_weights(weights)
    if is_workdir(source):
        return load_workdir(source, weights, checkpoint)[:2]
    if _length(weights):
        raise ConfigError(f"weights = {weights!r}: {source} is no workdir of zigma_jax.train, and has no such averages")
    if checkpoint != "latest":
        raise ConfigError(f"checkpoint = {checkpoint!r}: {source} is no workdir of zigma_jax.train, and has only one")
    if (source / "params").is_dir():
        cfg = _stored_config(source, architecture)
        return _with_params(cfg, load_params(source / "params", _abstract_params(cfg)), source), None
    if source.is_dir():
        raise WeightsError(
            f"{source}: a directory without checkpoints/ of a run and without orbax parameters (params/)"
        )
    with read_locally(source) as file:
        if file_kind(file) == "safetensors" and family not in TENSORS:
            model = load_safetensors(file, fallback=architecture)
        else:
            family = family or (family_of(architecture) if architecture else "zigma")
            kind = "ema" if weights == "ema" else "model"
            model = load_official(file, family=family, weights=kind, fallback=architecture)
    _check_finite(params_of(model), source)
    return model, None


def load_workdir(workdir: AnyPath, weights: str = "ema", checkpoint: str = "latest") -> tuple[Model, RunConfig, int]:
    """The model of a run of `zigma_jax.train`, its configuration, and the step that it is of.

    Args:
        workdir: the run's.
        weights: "ema" or "raw": the averaged or the last ones; "ema:0.1": the average of that length, of
            `train.ema_lengths`.
        checkpoint: "latest", the newest sound one; "best", as evaluations during training found; or a step.

    Raises:
        ConfigError: no such weights, or no best checkpoint. WeightsError: weights that are NaN or infinite.
        CheckpointError: no sound checkpoint.
    """
    _check_weights(weights)
    if checkpoint not in ("latest", "best") and not checkpoint.isdecimal():
        raise ConfigError(f"checkpoint = {checkpoint!r}: must be 'latest', 'best' or a step")
    wanted = None if checkpoint == "latest" else best_step(workdir) if checkpoint == "best" else int(checkpoint)
    with Checkpointer(workdir / "checkpoints") as checkpoints:
        config = from_dict(checkpoints.read_extra()["config"])
        wanted_params: dict = {"ema" if weights == "ema" else "params": _abstract_params(config.model)}
        if length := _length(weights):
            if length not in (names := [average_name(given) for given in config.train.ema_lengths]):
                raise ConfigError(f"weights = {weights!r}: the run keeps {', '.join(names) or 'no other averages'}")
            wanted_params = {"averages": {length: wanted_params["params"]}}
        state, _, step = checkpoints.restore(wanted_params, wanted, partial=True)
    (params,) = (state["averages"] if length else state).values()
    return _with_params(config.model, params, workdir), config, step


def is_workdir(source: AnyPath) -> bool:
    """Whether a run of `zigma_jax.train` lives there."""
    return (source / "checkpoints").is_dir()


def is_model(source: AnyPath) -> bool:
    """Whether `source` is laid out, filled or named as what `load_weights` loads."""
    if is_workdir(source) or (source / "params").is_dir() or source.suffix.lower() in FILE_SUFFIXES:
        return True
    try:
        return not in_bucket(source) and source.is_file() and bool(file_kind(source))
    except WeightsError:
        return False


def save_weights(model: Model, target: AnyPath) -> None:
    """Writes an official PyTorch file (.pt, .pth, .ckpt, .bin), a .safetensors, or a directory of orbax parameters.

    Upper and lower case of the suffix are the same. The directory holds `params`, which orbax alone can read, and
    `config.json`, the model's configuration.

    Raises:
        ConfigError: `target` exists, or is named as a file of another kind.
    """
    if target.exists():
        raise ConfigError(f"{target} exists; choose another name")
    if target.suffix.lower() in _OTHER:
        raise ConfigError(
            f"{target}: weights are written as {', '.join(FILE_SUFFIXES)} or a directory, not as {target.suffix}"
        )
    make_directory(target.parent)
    if target.suffix.lower() in FILE_SUFFIXES:
        save = save_safetensors if target.suffix.lower() == _SAFETENSORS else save_official
        with written_locally(target) as file:
            save(model, file)
    else:
        save_params(target / "params", params_of(model))
        write_atomically(target / "config.json", json.dumps(config_to_dict(model.cfg), indent=1).encode())


def params_of(model: Model) -> dict:
    """The parameters as the nested dicts that training works on."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _check_weights(weights: str) -> None:
    if weights not in ("ema", "raw") and not _length(weights):
        raise ConfigError(f"weights = {weights!r}: must be 'ema', 'raw', or 'ema:0.1' for the average of that length")


def _length(weights: str) -> str | None:
    """Of "ema:0.10" the name of the average, "0.1"."""
    kind, _, length = weights.partition(":")
    try:
        return average_name(float(length)) if kind == "ema" and length else None
    except ValueError:
        return None


def _abstract_params(cfg: BackboneConfig) -> dict:
    return params_of(abstract_model(cfg))


def _with_params(cfg: BackboneConfig, params: dict, source: AnyPath) -> Model:
    _check_finite(params, source)
    return nnx.merge(nnx.graphdef(abstract_model(cfg)), params)


def _stored_config(source: AnyPath, architecture: BackboneConfig | None) -> BackboneConfig:
    """Of a directory of orbax parameters."""
    path = source / "config.json"
    try:
        return config_from_dict(json.loads(path.read_text()), str(path))
    except FileNotFoundError:
        if architecture is None:
            raise WeightsError(f"{path} is missing: nothing tells the architecture of {source}/params") from None
        return architecture
    except (ValueError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: not the configuration of a model: {error}") from error


def _check_finite(params: dict, source: AnyPath) -> None:
    """Raises WeightsError naming the tensors that hold NaN or infinity: what they draw is black, or noise."""
    wrong = []
    for name, values in flatten(params).items():
        bad = values.size - int(jnp.isfinite(values).sum())
        if bad:
            wrong.append(f"{name} ({bad} of {values.size})")
    if wrong:
        more = f" and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise WeightsError(f"{source}: weights are NaN or infinite in {', '.join(wrong[:12])}{more}")

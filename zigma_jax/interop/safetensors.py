"""Safetensors files: a model's parameters by their dotted paths, its configuration in the header.

Kernels are (in, out) and the blocks' tensors carry a leading layer axis, as in the model itself.
"""

import json
import os

import safetensors
from safetensors.numpy import save_file

from zigma_jax.errors import WeightsError
from zigma_jax.interop.weights import config_from_dict, flat_parameters, model_from_parameters
from zigma_jax.models.families import BackboneConfig, Model, config_to_dict

_CONFIG_KEY = "zigma_jax.config"  # JSON of the configuration's fields


def save_safetensors(model: Model, path: str | os.PathLike) -> None:
    """Writes the model's parameters in float32 and its configuration."""
    metadata = {"format": "flax", _CONFIG_KEY: json.dumps(config_to_dict(model.cfg))}
    save_file(flat_parameters(model), path, metadata=metadata)


def load_safetensors(
    path: str | os.PathLike, *, config: BackboneConfig | None = None, fallback: BackboneConfig | None = None
) -> Model:
    """Reads what `save_safetensors` wrote.

    Args:
        path: the file.
        config: the architecture; None reads it from the file's header.
        fallback: the architecture of a file whose header does not tell it.

    Raises:
        WeightsError: not a safetensors file, no configuration in either place, or tensors that are missing,
            unexpected or mis-shaped (all listed by name).
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            parameters = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    if config is None and _CONFIG_KEY not in metadata:
        config = fallback
    if config is None:
        if _CONFIG_KEY not in metadata:
            raise WeightsError(f"{path}: no {_CONFIG_KEY} in its header; give the architecture as `config`")
        config = config_from_dict(json.loads(metadata[_CONFIG_KEY]), os.fspath(path))
    return model_from_parameters(config, parameters, os.fspath(path))

"""A model's parameters as a flat dict of numpy arrays, and back: what every file format here is made from."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zigma_jax.errors import WeightsError
from zigma_jax.models import families
from zigma_jax.models.families import BackboneConfig, Model, build


def config_from_dict(fields: Mapping[str, Any], source: str) -> BackboneConfig:
    """The configuration that a file holds as plain values. Raises WeightsError for fields there are none of."""
    try:
        return families.config_from_dict({**fields, "sample_shape": tuple(fields["sample_shape"])})
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{source}: its configuration is no architecture: {error}") from error


def abstract_model(cfg: BackboneConfig) -> Any:
    """The model's structure with shapes and dtypes in place of arrays."""
    return nnx.eval_shape(lambda: build(cfg, rngs=nnx.Rngs(0)))


def parameter_shapes(cfg: BackboneConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter by its dotted path, e.g. "blocks.mixer.in_proj.kernel"."""
    return _flatten(nnx.state(abstract_model(cfg), nnx.Param))


def flat_parameters(model: Model) -> dict[str, np.ndarray]:
    """Every parameter, on the host, by its dotted path; the blocks' arrays keep their leading layer axis."""
    return {path: np.asarray(value) for path, value in _flatten(nnx.state(model, nnx.Param)).items()}


def model_from_parameters(cfg: BackboneConfig, parameters: Mapping[str, np.ndarray], source: str) -> Any:
    """A model with the given parameters.

    Raises:
        WeightsError: parameters are missing, unexpected or of another shape; all of them are listed by name.
    """
    expected = {path: leaf.shape for path, leaf in parameter_shapes(cfg).items()}
    check_shapes(expected, {path: value.shape for path, value in parameters.items()}, source)
    graphdef, state = nnx.split(abstract_model(cfg))
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    values = [jnp.asarray(parameters[_dotted(path)], leaf.dtype) for path, leaf in leaves]
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, values))


def check_shapes(expected: Mapping[str, tuple], found: Mapping[str, tuple], source: str):
    """Raises WeightsError listing what is missing, unexpected and mis-shaped."""
    problems = [f"  missing: {name} {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"  unexpected: {name} {found[name]}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"  wrong shape: {name} is {tuple(found[name])}, the model needs {tuple(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(expected[name]) != tuple(found[name])
    ]
    if problems:
        raise WeightsError(f"{source} does not fit the model ({len(problems)} tensors):\n" + "\n".join(problems))


def _flatten(state) -> dict:
    return {_dotted(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _dotted(path) -> str:
    """("blocks", "norm", "scale", <the Variable's value>) → "blocks.norm.scale"."""
    return ".".join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))

"""What the text encoders are made of: layers of attention and a perceptron, their weights stacked."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Int

from zigma_jax.errors import WeightsError
from zigma_jax.networks.weight_file import WeightFile

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
}
Layer = dict[str, Any]  # one layer's arrays by name


class Stack(nnx.Module):
    """Layers of one shape, run one after the other; their arrays have a leading layer axis."""

    def __init__(self, layers: list[dict[str, np.ndarray]]):
        self.weights = nnx.Dict({key: param(np.stack([layer[key] for layer in layers])) for key in layers[0]})

    def __call__(self, layer: Callable[[Layer, Array], Array], x: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        weights = {key: value[...] for key, value in self.weights.items()}
        return jax.lax.scan(lambda x, w: (layer(w, x), None), x, weights)[0]


def param(value: np.ndarray) -> nnx.Param:
    return nnx.Param(jnp.asarray(value))


def take_linear(file: WeightFile, name: str, into: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (into, out) and bias."""
    return file.take(f"{name}.weight", out, into).T, file.take(f"{name}.bias", out)


def take_norm(file: WeightFile, name: str, width: int) -> np.ndarray:
    """Scale and bias of a layer norm, (2, width); in files of the first years they are called gamma and beta."""
    old = f"{name}.gamma" in file
    return np.stack([file.take(f"{name}.{part}", width) for part in (("gamma", "beta") if old else ("weight", "bias"))])


def take_layer(
    file: WeightFile, prefix: str, names: dict[str, str | tuple[str, ...]], width: int, hidden: int
) -> Layer:
    """The arrays of one layer under the keys "qkv", "out", "fc1", "fc2", "norm1", "norm2".

    Args:
        names: those in the file by these keys; "qkv" are three, which become one matrix.
    """
    qkv = [take_linear(file, f"{prefix}{name}", width, width) for name in names["qkv"]]
    linears = {
        "qkv": tuple(np.concatenate(part, axis=-1) for part in zip(*qkv, strict=True)),
        "out": take_linear(file, f"{prefix}{names['out']}", width, width),
        "fc1": take_linear(file, f"{prefix}{names['fc1']}", width, hidden),
        "fc2": take_linear(file, f"{prefix}{names['fc2']}", hidden, width),
    }
    layer = {f"{key}.{part}": value for key, pair in linears.items() for part, value in zip("wb", pair, strict=True)}
    return layer | {key: take_norm(file, f"{prefix}{names[key]}", width) for key in ("norm1", "norm2")}


def look_up(table: Float[Array, "n d"], ids: Int[Array, "b m"]) -> Float[Array, "b m d"]:
    """Rows of a table, spread over devices as the ids are; a mesh with explicit axes has to be told so."""
    sharding = jax.typeof(ids).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return table[ids]
    return table.at[ids].get(out_sharding=jax.NamedSharding(sharding.mesh, jax.P(*sharding.spec, None)))


def attend(
    w: Layer, x: Float[Array, "b m d"], heads: int, *, mask: Bool[Array, "b m"] | None = None, causal: bool = False
) -> Float[Array, "b m d"]:
    """Self-attention among the tokens that `mask` lets be seen (None: all), or those up to each one's own."""
    b, m, d = x.shape
    q, k, v = jnp.moveaxis((x @ w["qkv.w"] + w["qkv.b"]).reshape(b, m, 3, heads, d // heads), 2, 0)
    seen = None if mask is None else mask[:, None, None, :]
    attended = jax.nn.dot_product_attention(q, k, v, mask=seen, is_causal=causal).reshape(b, m, d)
    return attended @ w["out.w"] + w["out.b"]


def perceptron(w: Layer, x: Float[Array, "b m d"], activation: str) -> Float[Array, "b m d"]:
    return ACTIVATIONS[activation](x @ w["fc1.w"] + w["fc1.b"]) @ w["fc2.w"] + w["fc2.b"]


def layer_norm(x: Float[Array, "*b d"], norm: Float[Array, "2 d"], epsilon: float) -> Float[Array, "*b d"]:
    return jax.nn.standardize(x, axis=-1, epsilon=epsilon) * norm[0] + norm[1]


class TextConfig:
    """Numbers of a config.json, each checked as it is read.

    Raises WeightsError naming file, field, value and rule.
    """

    def __init__(self, values: dict[str, Any], place: str):
        self._values, self._place = values, place

    def count(self, name: str, default: int) -> int:
        value = self._values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self._refuse(name, "must be a whole number above 0")
        return value

    def positive(self, name: str, default: float) -> float:
        value = self._values.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
            self._refuse(name, "must be a number between 0 and 1")
        return float(value)

    def choice(self, name: str, choices: list[str], default: str) -> str:
        value = self._values.get(name, default)
        if value not in choices:
            self._refuse(name, f"must be one of {', '.join(choices)}")
        return value

    def heads(self, width: int, default: int) -> int:
        heads = self.count("num_attention_heads", default)
        if width % heads:
            self._refuse("num_attention_heads", f"must divide the width {width}")
        return heads

    def _refuse(self, name: str, rule: str):
        raise WeightsError(f"{self._place}: config.json has {name} = {self._values.get(name)!r}: it {rule}")

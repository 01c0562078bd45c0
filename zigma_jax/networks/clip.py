"""Both towers of CLIP (arXiv 2103.00020): how well pictures fit captions, the CLIP score. `load_clip(place)`."""

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from zigma_jax.errors import ConfigError, WeightsError
from zigma_jax.networks.clip_text import LAYER_NAMES, ClipText
from zigma_jax.networks.layers import bicubic
from zigma_jax.networks.sources import find_weights
from zigma_jax.networks.text_layers import (
    ACTIVATIONS,
    Layer,
    Stack,
    TextConfig,
    attend,
    layer_norm,
    param,
    perceptron,
    take_layer,
    take_norm,
)
from zigma_jax.networks.tokenizer import Tokenizer
from zigma_jax.networks.weight_file import WeightFile

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
WHERE = "A CLIP with both towers is a directory as on the hub, such as hf://openai/clip-vit-large-patch14."


class ClipImage(nnx.Module):
    """The image tower: pictures (b, h, w, 3) of uint8 to the class token's state after the last norm, (b, width).

    Pictures are resized to the tower's size, bicubic and antialiased, and normalised as CLIP's.
    """

    def __init__(self, file: WeightFile, config: dict[str, Any], place: str):
        fields = TextConfig(config, place)
        self.width = width = fields.count("hidden_size", 768)
        self.size, self.patch = fields.count("image_size", 224), fields.count("patch_size", 32)
        self.heads = fields.heads(width, 12)
        self.activation = fields.choice("hidden_act", list(ACTIVATIONS), "quick_gelu")
        self.epsilon = fields.positive("layer_norm_eps", 1e-5)
        depth, hidden = fields.count("num_hidden_layers", 12), fields.count("intermediate_size", 3072)
        if self.size % self.patch:
            raise WeightsError(f"{place}: config.json has patch_size = {self.patch}: it must divide {self.size}")

        kernel = file.take("vision_model.embeddings.patch_embedding.weight", width, 3, self.patch, self.patch)
        self.patches = param(kernel.transpose(2, 3, 1, 0).reshape(-1, width))
        self.first = param(file.take("vision_model.embeddings.class_embedding", width))
        positions = (self.size // self.patch) ** 2 + 1
        self.positions = param(file.take("vision_model.embeddings.position_embedding.weight", positions, width))
        self.norm_in = param(take_norm(file, "vision_model.pre_layrnorm", width))  # so it is spelt
        layers = (f"vision_model.encoder.layers.{i}." for i in range(depth))
        self.layers = Stack([take_layer(file, layer, LAYER_NAMES, width, hidden) for layer in layers])
        self.norm = param(take_norm(file, "vision_model.post_layernorm", width))

    def __call__(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b d"]:
        x = bicubic(images.astype(jnp.float32), self.size)
        x = (jnp.clip(jnp.round(x), 0, 255) / 255 - _MEAN) / _STD
        b, side, p = len(x), self.size // self.patch, self.patch
        x = x.reshape(b, side, p, side, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, side * side, p * p * 3)
        first = jnp.broadcast_to(self.first[...], (b, 1, self.width))
        x = jnp.concatenate([first, x @ self.patches[...]], axis=1) + self.positions[...]

        def layer(w: Layer, x: Array) -> Array:
            x = x + attend(w, layer_norm(x, w["norm1"], self.epsilon), self.heads)
            return x + perceptron(w, layer_norm(x, w["norm2"], self.epsilon), self.activation)

        x = self.layers(layer, layer_norm(x, self.norm_in[...], self.epsilon))
        return layer_norm(x[:, 0], self.norm[...], self.epsilon)


class _Both(nnx.Module):
    """The towers with their projections into one space."""

    def __init__(self, file: WeightFile, config: dict[str, Any], place: str):
        vision = (config.get("vision_config") or {}) | (config.get("vision_config_dict") or {})
        self.image, self.text = ClipImage(file, vision, place), ClipText(file, config, place)
        size = TextConfig(config, place).count("projection_dim", 512)
        self.of_image = param(file.take("visual_projection.weight", size, self.image.width).T)
        self.of_text = param(file.take("text_projection.weight", size, self.text.width).T)

    def __call__(
        self, images: UInt8[Array, "b h w 3"], ids: Int[Array, "b m"], mask: Bool[Array, "b m"]
    ) -> Float[Array, " b"]:
        """The cosine between each picture and its caption."""
        states = self.text(ids, mask)
        last = jnp.argmax(ids, axis=1)  # the token that ends the caption has the largest number; the first of them
        text = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0] @ self.of_text[...]
        image = self.image(images) @ self.of_image[...]
        lengths = jnp.linalg.norm(text, axis=1) * jnp.linalg.norm(image, axis=1)
        return jnp.sum(text * image, axis=1) / lengths


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clip:
    """Both towers with their weights, a pytree.

    Attributes:
        name, fingerprint, place: as of `TextEncoder`.
    """

    weights: Any
    graphdef: Any = dataclasses.field(metadata={"static": True})
    tokenizer: Tokenizer = dataclasses.field(metadata={"static": True})
    name: str = dataclasses.field(metadata={"static": True})
    fingerprint: str = dataclasses.field(metadata={"static": True})
    place: str = dataclasses.field(metadata={"static": True})

    def score(self, cosines: Sequence[float]) -> float:
        """The CLIP score (arXiv 2104.08718, as torchmetrics has it): the mean of cosines, below 0 as 0, times 100."""
        return 100 * float(np.mean(np.maximum(cosines, 0)))

    def cosines(self, images: Shaped[Array | np.ndarray, "..."], captions: Sequence[str]) -> Float[Array, " b"]:
        """Of each picture with its caption, in [-1, 1].

        images: (b, h, w, 3), uint8.

        Raises:
            ConfigError: pictures that are not uint8 (b, h, w, 3), or not as many as captions.
            WeightsError, MissingPackageError: as `TextEncoder.tokenize`.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(images) != len(captions):
            raise ConfigError(
                f"images have shape {images.shape} and dtype {images.dtype}: {self.name} takes uint8 "
                f"(batch, height, width, 3), and as many captions, which are {len(captions)}"
            )
        ids, mask = self.tokenizer(captions)
        return _cosines(self.graphdef, self.weights, images, ids, mask)


def load_clip(place: str | os.PathLike[str], *, flag: str = "clip") -> Clip:
    """The CLIP in a place, as `find_weights` takes it, with both towers.

    Raises:
        WeightsError: no such place, damaged files, or a network of another kind, with what does not fit by name.
    """
    source = find_weights(place, where=WHERE, flag=flag)
    config = source.config()
    if config.get("model_type", "clip") != "clip":
        raise WeightsError(f"{source.place}: config.json has model_type = {config['model_type']!r}. {WHERE}")
    file = source.open()
    network = _Both(file, config, source.place)
    file.check()
    graphdef, weights = nnx.split(network)
    tokenizer = Tokenizer(source, length=network.text.length, padded=True)
    return Clip(weights, graphdef, tokenizer, "clip", file.fingerprint(), source.place)


@partial(jax.jit, static_argnums=0)
def _cosines(graphdef, weights, images, ids, mask):
    with jax.default_matmul_precision("highest"):
        return nnx.merge(graphdef, weights)(jnp.asarray(images), jnp.asarray(ids), jnp.asarray(mask))

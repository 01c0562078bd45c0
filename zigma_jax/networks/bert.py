"""BERT (arXiv 1810.04805), such as MiniLM: its token states, without the pooler.

Every token sees every other one except padding.
"""

from typing import Any

from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from zigma_jax.networks.text_layers import (
    ACTIVATIONS,
    Layer,
    Stack,
    TextConfig,
    attend,
    layer_norm,
    look_up,
    param,
    perceptron,
    take_layer,
    take_norm,
)
from zigma_jax.networks.weight_file import WeightFile

_NAMES = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "out": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "norm1": "attention.output.LayerNorm",
    "norm2": "output.LayerNorm",
}


class Bert(nnx.Module):
    """Token ids to token states, of one sentence each.

    Args:
        file: the encoder alone, or with heads, which are left aside. Names may start with "bert.".
        config: of config.json.
        place: for errors.
    """

    masked = True  # whether padding is kept from being seen

    def __init__(self, file: WeightFile, config: dict[str, Any], place: str):
        fields = TextConfig(config, place)
        fields.choice("position_embedding_type", ["absolute"], "absolute")
        self.width = width = fields.count("hidden_size", 768)
        self.length = fields.count("max_position_embeddings", 512)
        self.vocabulary = fields.count("vocab_size", 30522)
        self.heads = fields.heads(width, 12)
        self.activation = fields.choice("hidden_act", list(ACTIVATIONS), "gelu")
        self.epsilon = fields.positive("layer_norm_eps", 1e-12)
        depth, hidden = fields.count("num_hidden_layers", 12), fields.count("intermediate_size", 3072)

        prefix = "bert." if "bert.embeddings.word_embeddings.weight" in file else ""
        self.tokens = param(file.take(f"{prefix}embeddings.word_embeddings.weight", self.vocabulary, width))
        positions = file.take(f"{prefix}embeddings.position_embeddings.weight", self.length, width)
        kinds = file.take(f"{prefix}embeddings.token_type_embeddings.weight", fields.count("type_vocab_size", 2), width)
        self.positions = param(positions + kinds[0])  # every token is of the first sentence
        self.norm = param(take_norm(file, f"{prefix}embeddings.LayerNorm", width))
        layers = (f"{prefix}encoder.layer.{i}." for i in range(depth))
        self.layers = Stack([take_layer(file, layer, _NAMES, width, hidden) for layer in layers])
        file.leave(f"{prefix}pooler.", "cls.")

    def __call__(self, ids: Int[Array, "b m"], mask: Bool[Array, "b m"]) -> Float[Array, "b m d"]:
        def layer(w: Layer, x: Array) -> Array:
            x = layer_norm(x + attend(w, x, self.heads, mask=mask), w["norm1"], self.epsilon)
            return layer_norm(x + perceptron(w, x, self.activation), w["norm2"], self.epsilon)

        x = look_up(self.tokens[...], ids) + self.positions[...][: ids.shape[1]]
        return self.layers(layer, layer_norm(x, self.norm[...], self.epsilon))

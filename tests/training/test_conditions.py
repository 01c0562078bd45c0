"""Conditions of the training step: which are dropped, for what, and that nothing else depends on them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.training.tiny import tiny_config
from tests.training.tiny_text import write_bert
from zigma_jax.data.config import TextConfig
from zigma_jax.data.pipeline import make_dataset, open_source
from zigma_jax.errors import ConfigError, DataError, WeightsError
from zigma_jax.models.text import Text
from zigma_jax.train import train
from zigma_jax.training.conditions import Captions, Labels, open_conditions, open_encoder
from zigma_jax.training.prompts import Prompts, captions_of, held_out, null_text, open_text_encoder, read_prompts
from zigma_jax.training.samples import inputs
from zigma_jax.training.step import sample_keys
from zigma_jax.training.workdir import check_same_run

KEYS = sample_keys(0, jnp.int32(0), 4096)
CLASSLESS = {"model__num_classes": 0, "model__null_class": False, "model__context_size": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"))


def text_config(data_dir, place, **changes):
    return tiny_config(data_dir, text__encoder=str(place), **CLASSLESS, **changes)


def test_labels_are_dropped_for_the_null_class_even_if_their_dtype_has_no_room_for_it():
    labels = jnp.full(4096, 255, jnp.uint8)
    found = np.asarray(Labels(0.25, 256)({"label": labels}, KEYS))
    assert set(found.tolist()) == {255, 256}
    assert 0.22 < np.mean(found == 256) < 0.28
    assert Labels(0.25, 256)({}, KEYS) is None
    np.testing.assert_array_equal(Labels()({"label": labels}, KEYS), labels)


def test_captions_are_dropped_for_the_empty_one(place):
    encoder = open_text_encoder(TextConfig(str(place)), 8)
    null = null_text(encoder, 8)
    assert np.sum(np.asarray(null.mask)) == 2  # the first and the last token
    tokens, mask = jnp.ones((4096, 8, 8), jnp.float16), jnp.ones((4096, 8), bool)
    found = Captions(null, 0.25)({"tokens": tokens, "token_mask": mask}, KEYS)
    dropped = ~np.asarray(found.mask).all(1)
    assert 0.22 < dropped.mean() < 0.28
    np.testing.assert_array_equal(found.tokens[dropped], np.repeat(null.tokens, int(dropped.sum()), axis=0))
    np.testing.assert_array_equal(found.tokens[~dropped], tokens[~dropped])
    # The same samples whatever the condition is.
    np.testing.assert_array_equal(Labels(0.25, 1)({"label": jnp.zeros(4096, int)}, KEYS) == 1, dropped)


def test_encoded_in_the_step_they_are_as_from_the_set(data_dir, place, tmp_path):
    found = {}
    for cache in ("step", str(tmp_path / "cache")):
        config = text_config(data_dir, place, text__cache=cache)
        source = open_source(config.data)
        given, config = open_conditions(config, source, open_encoder(config, source))
        assert config.text.fingerprint == given.encoder.fingerprint
        dataset = make_dataset(config.data, global_batch=16, text=given.texts)
        batch = inputs(dataset.batch(0), labels=False)
        assert ("token_ids" in batch) == (cache == "step")
        found[cache] = given.conditions(jax.tree.map(jnp.asarray, batch), KEYS[:16])
    in_step, cached = found.values()
    for row in range(16):
        seen = np.asarray(cached.mask[row])
        assert np.sum(in_step.mask[row]) == np.sum(seen)
        np.testing.assert_allclose(
            np.asarray(in_step.tokens[row])[: seen.sum()], np.asarray(cached.tokens[row])[seen], atol=2e-3
        )


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit_and_draws_from_its_prompts(data_dir, place, tmp_path):
    """Seven steps of 64 pictures with three captions each: the same captions, and the same losses."""
    from tests.training.test_train import leaves, metrics

    changes = {"text__cache": str(tmp_path / "cache"), "log__preview_every": 7, "sample__guidance": 2.0}
    config = text_config(data_dir, place, train__steps=7, model__depth=1, **changes)
    assert train(config, tmp_path / "whole")
    shorter = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    assert train(shorter, tmp_path / "broken")
    assert train(config, tmp_path / "broken")
    expected, found = leaves(tmp_path / "whole", 7), leaves(tmp_path / "broken", 7)
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    losses = [[line["loss"] for line in metrics(tmp_path / run)] for run in ("whole", "broken")]
    assert losses[0] == losses[1]
    assert (tmp_path / "whole" / "previews" / "latest.png").exists()

    # Another encoder of the same width is refused.
    other = write_bert(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"holds a run of another model \(text.fingerprint differ"):
        train(
            dataclasses.replace(config, text=dataclasses.replace(config.text, encoder=str(other))), tmp_path / "broken"
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"text__fingerprint": "b"},
        {"latent__fingerprint": "b"},
        {"latent__scale": 2.0},
        {"latent__shift": 2.0},
    ],
)
def test_a_checkpoint_binds_the_networks_that_its_numbers_come_from(data_dir, place, tmp_path, changes):
    from zigma_jax.training.parse_config import to_dict

    kept = {"text__fingerprint": "a", "latent__fingerprint": "a", "latent__scale": 1.0, "latent__shift": 0.0}
    config = text_config(data_dir, place, **kept)
    (name,) = changes
    with pytest.raises(ConfigError, match=name.replace("__", ".")):
        check_same_run(text_config(data_dir, place, **(kept | changes)), to_dict(config), tmp_path)


# ---- prompts


def test_a_prompt_does_not_depend_on_the_others(place):
    encoder = open_text_encoder(TextConfig(str(place)), 8)
    few = Prompts(encoder, ["a man with glasses", ""])
    many = Prompts(
        encoder,
        ["a woman", *["a man with black hair and glasses and no pink hair , a woman"] * 3, "", "a man with glasses"],
    )
    numbers = np.arange(2)
    assert few(numbers).tokens.shape == (2, 8, 8)
    assert many(numbers).tokens.shape == (2, 16, 8)
    np.testing.assert_array_equal(few(np.array([0])).tokens[0], many(np.array([5])).tokens[0, :8])
    np.testing.assert_array_equal(few(np.array([1])).tokens, few.null.tokens)
    assert few.of(np.arange(3)) == ["a man with glasses", "", "a man with glasses"]
    assert few.fingerprint != many.fingerprint


class Words:
    """A data set of captions alone."""

    def __init__(self, *captions):
        self._captions = captions

    def __len__(self):
        return len(self._captions)

    def captions(self, index):
        return self._captions[index]


def test_captions_are_one_a_picture_in_the_order_of_the_set():
    words: Any = Words(["a0", "a1"], ["b0", "b1", "b2"], [], ["d0"])
    assert captions_of(words, 4) == ["a0", "b1", "", "d0"]
    assert captions_of(words, 2) == ["a0", ""]  # spread over the set
    assert captions_of(words, 9) == ["a0", "b1", "", "d0", "a0", "b2", "", "d0", "a0"]


def test_previews_show_captions_that_the_run_does_not_see(data_dir):
    data = tiny_config(data_dir).data
    for split, expected in (("train", "test"), ("train[:50%]", "test"), ("test[:50%]", "test[:50%]")):
        assert held_out(dataclasses.replace(data, split=split)).info.split == expected


def test_a_file_of_prompts_has_one_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa man, with glasses\r\n a \u2028woman\x85 \n\n".encode())
    given = [str(file), "", "no hair, a man\nand", "x" * 5000, "\0", "and/or"]
    assert read_prompts(given) == ["a man, with glasses", " a \u2028woman\x85 ", *given[1:]]
    for content, message in (
        (b"", "the file is empty"),
        (b" \n\r\n", "the file is empty"),
        (
            b"a man\n\na woman\n \nhair",
            "line 2 is blank, and 1 more; remove it, or give the empty prompt as --prompts=",
        ),
        ("caf\xe9".encode("latin-1"), "not text in UTF-8"),
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            read_prompts([str(file)])
    with pytest.raises(ConfigError, match=r"typo\.txt: there is no such file"):
        read_prompts(["a man", f"{tmp_path}/typo.txt"])
    with pytest.raises(ConfigError, match="this is a directory"):
        read_prompts([str(tmp_path)])


def test_prompts_that_are_too_long_are_counted_and_said_once(place, caplog):
    encoder = open_text_encoder(TextConfig(str(place)), 8)
    prompts = Prompts(encoder, ["a man", "hair " * 100, "glasses " * 5000])
    for _ in range(2):
        assert prompts(np.arange(6)).tokens.shape == (6, 32, 8)
    assert [record.message for record in caplog.records if "Captions of more than" in record.message] == [
        f"Captions of more than 32 tokens are cut, which is said once: 2 here, the first of them {('hair ' * 12)!r}"
    ]
    assert encoder.tokenizer.truncated == 2


@pytest.mark.parametrize(
    ("fields", "width", "message"),
    [
        ({}, 16, r"its tokens have 8 numbers, and the model takes model.context_size = 16"),
        ({"fingerprint": "0" * 64}, 8, r"the run was trained with 000000000000…: give the same encoder"),
        ({"weights": "somewhere"}, 8, r"is a place, and text.weights = 'somewhere' another"),
    ],
)
def test_encoders_that_do_not_fit(place, fields, width, message):
    with pytest.raises(ConfigError, match=message):
        open_text_encoder(TextConfig(str(place), **fields), width)


def test_kinds_of_encoders(place):
    assert open_text_encoder(TextConfig("bert", str(place)), 8).name == "bert"
    with pytest.raises(ConfigError, match=r"text.encoder = 'clip': .* holds a bert"):
        open_text_encoder(TextConfig("clip", str(place)), 8)
    with pytest.raises(ConfigError, match=r"text.encoder = 'clip': needs text.weights"):
        open_text_encoder(TextConfig("clip"), 8)


def test_a_missing_tokenizer_shows_before_anything_is_compiled(place, tmp_path, data_dir):
    import shutil

    shutil.copytree(place, tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").unlink()
    config = text_config(data_dir, tmp_path / "bert", text__cache=str(tmp_path / "cache"))
    with pytest.raises(WeightsError, match="there is no tokenizer"):
        open_encoder(config, open_source(config.data))


def test_what_is_wrong_with_an_encoder_shows_before_pictures_are_encoded_and_weights_read(
    place, tmp_path, data_dir, monkeypatch
):
    import shutil

    import zigma_jax.train

    monkeypatch.setattr(zigma_jax.train, "open_samples", lambda *_: pytest.fail("pictures are encoded"))
    shutil.copytree(place, tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"would be read")
    config = text_config(data_dir, tmp_path / "bert", text__cache=str(tmp_path / "cache"))
    wider = dataclasses.replace(config.model, context_size=16)
    with pytest.raises(ConfigError, match=r"its tokens have 8 numbers, and the model takes model.context_size = 16"):
        train(dataclasses.replace(config, model=wider), tmp_path / "run")

    (tmp_path / "captionless").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "captionless" / "a.png")
    config = text_config(data_dir, place, data__name="folder", data__folder=str(tmp_path / "captionless"))
    with pytest.raises(DataError, match=r"has no captions, which text\.encoder asks for"):
        train(config, tmp_path / "run")


def test_text_and_its_section_belong_together(data_dir):
    with pytest.raises(ConfigError, match=r"model.context_size = 8: is the width of the text encoder's tokens"):
        tiny_config(data_dir, **CLASSLESS)
    with pytest.raises(ConfigError, match=r"model.context_size = 0: is the width"):
        tiny_config(data_dir, text__encoder="minilm")
    with pytest.raises(ConfigError, match=r"log.preview_prompts = \('a',\): is for a model of text"):
        tiny_config(data_dir, log__preview_prompts=("a",))


def test_a_text_of_tokens_is_a_pair():
    assert Text(np.zeros((1, 2, 3), np.float32)).mask is None

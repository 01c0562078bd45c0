"""What records say of their pictures, what of it shows, and what a caption asks for."""

import numpy as np

from zigma_jax.data.attributes import CLASS, UNSEEN, asked_in_captions, attribute_names, attribute_values
from zigma_jax.data.datasets import avatar_art, avatar_words
from zigma_jax.data.sources import PreparedSource, prepare


def test_attributes_of_avatars(data_dir):
    source = PreparedSource(prepare("avatars/tiny", data_dir), "train")
    names = attribute_names(source)
    assert list(names) == [CLASS, *sorted(avatar_art.ATTRIBUTES)]
    assert names[CLASS] == tuple(avatar_art.TOPS)
    values = attribute_values(source, range(64))
    for record in range(64):
        drawn = avatar_art.draw_attributes("train", record)
        hidden = avatar_art.hidden(drawn)
        for name in avatar_art.ATTRIBUTES:
            value = values[name][record]
            assert value == UNSEEN if name in hidden else names[name][value] == drawn[name]
        assert names[CLASS][values[CLASS][record]] == drawn["top"]
    assert 0 < np.sum(values["hair_colour"] == UNSEEN) < 32


def test_what_captions_of_avatars_ask_for(data_dir):
    source = PreparedSource(prepare("avatars/tiny", data_dir), "train")
    names = attribute_names(source)
    captions = source.captions(1)  # short brown curls, no glasses, and more: see test_datasets
    asked = asked_in_captions(source, np.full(len(captions), 1), captions)
    said = [{name: names[name][of[i]] for name, of in asked.items() if of[i] != UNSEEN} for i in range(len(captions))]
    curls = {"top": "short curls", "top_colour": "brown", "hair_colour": "brown", "glasses": "none"}
    assert said == [
        curls | {"skin": "brown", "background": "sky"},
        curls | {"mouth": "smiling", "eyes": "open"},
        curls | {"eyebrows": "thick", "clothes": "jumper with a collar", "clothes_colour": "white"},
    ]


def test_every_attribute_that_shows_is_asked_for_by_one_of_the_captions():
    for record in range(300):
        drawn = avatar_art.draw_attributes("train", record)
        told = set().union(*(avatar_words.named(caption, drawn) for caption in avatar_words.captions(drawn)))
        silent = {"beard"} if drawn["beard"] == "none" else set()
        assert avatar_art.ATTRIBUTES.keys() - avatar_art.hidden(drawn) - silent <= told

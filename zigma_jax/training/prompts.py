"""From sentences to what a model is given: the text encoder of a run, its empty caption, and the prompts to draw."""

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from zigma_jax.data.config import DataConfig, TextConfig
from zigma_jax.errors import ConfigError, UserError
from zigma_jax.models.text import Text
from zigma_jax.training.config import RunConfig
from zigma_jax.training.sampling import choose_labels

if TYPE_CHECKING:
    from zigma_jax.data.sources import Source

KINDS = ("clip", "bert")  # of encoders, whose place is in text.weights
_STEP = 8  # masked tokens are padded to a multiple of it
_KEPT = 512  # prompts whose tokens are kept at once


def open_text_encoder(text: TextConfig, context_size: int) -> Any:
    """The `TextEncoder` that `text` names; None without one.

    context_size: of the model that is given its tokens.

    Raises:
        ConfigError: tokens of another width than the model takes; other weights than `text` wants; a kind without
            weights. WeightsError, MissingPackageError: there is no tokenizer. Otherwise as `load_text_encoder`.
    """
    if not text.encoder:
        return None
    from zigma_jax.networks import load_text_encoder, stated_width

    place = text.encoder
    if place in KINDS:
        if not text.weights:
            raise ConfigError(f"text.encoder = {place!r}: needs text.weights, the place of its files")
        place = text.weights
    elif text.weights:
        raise ConfigError(
            f"text.encoder = {place!r} is a place, and text.weights = {text.weights!r} another: give one, or the "
            f"kind of encoder ({', '.join(KINDS)}) and its weights"
        )
    stated = stated_width(place, flag="text.encoder")
    _check_width(text, stated or context_size, context_size)  # before hundreds of megabytes are read
    encoder = load_text_encoder(place, flag="text.encoder")
    if text.encoder in KINDS and text.encoder not in encoder.name:
        raise ConfigError(f"text.encoder = {text.encoder!r}: {place} holds a {encoder.name}")
    _check_width(text, encoder.width, context_size)
    if text.fingerprint not in ("", encoder.fingerprint):
        raise ConfigError(
            f"text.encoder = {text.encoder!r}: the fingerprint of its weights is {encoder.fingerprint[:12]}…, and the "
            f"run was trained with {text.fingerprint[:12]}…: give the same encoder"
        )
    encoder.tokenize([""])  # a tokenizer that is missing or damaged shows here
    return encoder


def _check_width(text: TextConfig, width: int, context_size: int) -> None:
    if width != context_size:
        raise ConfigError(
            f"text.encoder = {text.encoder!r}: its tokens have {width} numbers, and the model takes "
            f"model.context_size = {context_size}"
        )


def null_text(encoder: Any, length: int) -> Text:
    """The tokens of the empty caption, (1, length, width) float16, with a mask unless the encoder has none."""
    return _padded([np.asarray(encoder.null)], length, encoder)


def _padded(captions: Sequence[np.ndarray], length: int, encoder: Any) -> Text:
    """States of captions (m, width) as one array of zeros beyond them, as an encoded set has them."""
    tokens = np.zeros((len(captions), length, encoder.width), np.float16)
    mask = np.zeros(tokens.shape[:2], bool)
    for row, seen, states in zip(tokens, mask, captions, strict=True):
        row[: len(states)] = states
        seen[: len(states)] = True
    return Text(tokens, None if encoder.tokenizer.padded else mask)


class Prompts:
    """What samples show: sample i is drawn for prompt i, in turn.

    Prompts are encoded one by one, so that a prompt's tokens, and with them a picture, do not depend on which others
    are drawn beside it; when they are first drawn, and each once, as long as they are few.

    Attributes:
        texts: the prompts.
        negative: what guidance leads away from; empty: the empty caption.

    Raises:
        ConfigError: no prompts. WeightsError, MissingPackageError: the encoder has no tokenizer.
    """

    def __init__(self, encoder: Any, texts: Sequence[str], negative: str = ""):
        if not texts:
            raise ConfigError("no prompts: give one at least")
        self.texts, self.negative, self._encoder = list(texts), negative, encoder
        everything = list(dict.fromkeys([*texts, negative, ""]))
        ids, mask = encoder.tokenize(everything)  # reports those that are cut
        longest = math.ceil(int(mask.sum(1).max()) / _STEP) * _STEP
        self._length = encoder.length if encoder.tokenizer.padded else min(longest, encoder.length)
        self._ids = dict(zip(everything, zip(ids, mask, strict=True), strict=True))
        self._states: dict[str, np.ndarray] = {}

    @functools.cached_property
    def null(self) -> Text:
        """The tokens of `negative`, (1, m, width) float16."""
        return _padded([self._encode(self.negative)], self._length, self._encoder)

    def __call__(self, numbers: Int[np.ndarray, " n"]) -> Text:
        """The tokens for the samples of these numbers: (n, m, width) float16."""
        wanted = self.of(numbers)
        if len(self._states.keys() | set(wanted)) > _KEPT:
            self._states = {text: states for text, states in self._states.items() if text in set(wanted)}
        for text in wanted:
            if text not in self._states:
                self._states[text] = self._encode(text)
        return _padded([self._states[text] for text in wanted], self._length, self._encoder)

    def instead(self, texts: Sequence[str]) -> "Prompts":
        """Other prompts, for the same encoder and against the same negative one."""
        return Prompts(self._encoder, texts, self.negative)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of prompts and encoder: of all that samples depend on here."""
        said = repr((self.texts, self.negative, self._encoder.fingerprint))
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()

    def of(self, numbers: Int[np.ndarray, " n"]) -> list[str]:
        """The prompts for the samples of these numbers."""
        return [self.texts[number % len(self.texts)] for number in numbers.tolist()]

    def _encode(self, text: str) -> np.ndarray:
        ids, mask = self._ids[text]
        ids, mask = (part[None, : self._length] for part in (ids, mask))
        return np.asarray(self._encoder.encode(ids, mask))[0, mask[0]]


Conditions = Callable[[Int[np.ndarray, " n"]], Any]
"""What the samples of these numbers are drawn for: labels (n,), a `Text`, or None."""


def preview_conditions(config: RunConfig, encoder: Any) -> "Conditions | Prompts":
    """What a run's previews show: every class in turn, `log.preview_prompts`, or captions that it is not trained on."""
    if encoder is None:
        return functools.partial(choose_labels, config.model)
    prompts = config.log.preview_prompts or captions_of(held_out(config.data), config.log.preview_count)
    return Prompts(encoder, prompts)


def held_out(data: DataConfig) -> "Source":
    """The records of a split that is not trained on, if there is one; else those of `data.split`."""
    from zigma_jax.data.sources import open_source

    for split in ("test", "validation", "val"):
        if split in data.split:
            continue
        try:
            source = open_source(dataclasses.replace(data, split=split))
        except UserError:  # there is no such split
            continue
        if source.info.has_captions:
            return source
    return open_source(data)


def captions_of(source: "Source", count: int) -> list[str]:
    """Captions for `count` samples that are to be compared with a data set: one a picture, as a metric like COCO's
    FID has them. The records are spread over the set, and a record with several captions gives the i-th sample its
    i-th, in turn; one without gives the empty caption.

    Raises DataError if the set has no captions.
    """
    captions = []
    for place, record in enumerate(spread(source, count)):
        texts = source.captions(int(record)) or [""]
        captions.append(texts[place % len(texts)])
    return captions


def spread(source: "Source", count: int) -> Int[np.ndarray, " count"]:
    """The records whose conditions `count` samples have: spread over the set, or all of them again and again."""
    return np.arange(count) * len(source) // count if count < len(source) else np.arange(count) % len(source)


def read_prompts(given: Sequence[str]) -> list[str]:
    """Of the flag --prompts: each a sentence, or a file with one prompt a line.

    A sentence may be empty; a line must not, because a blank one is more often a mistake than the empty prompt.

    Raises ConfigError for a file that is empty, not there or no text, for a directory, and for blank lines.
    """
    prompts: list[str] = []
    for value in given:
        kind = _kind(value)
        if kind == "sentence":
            prompts.append(value)
            continue
        if kind != "file":
            raise ConfigError(f"--prompts={value}: {kind}; give a file with one prompt a line, or the sentence itself")
        try:
            with open(value, encoding="utf-8-sig", newline="") as file:
                text = file.read()
        except UnicodeDecodeError as error:
            raise ConfigError(f"--prompts={value}: the file is not text in UTF-8 ({error})") from error
        # Lines end at \n alone: str.splitlines would also cut at U+2028 and \x85, which prompts may have.
        lines = [line.strip("\r") for line in text.split("\n")]
        while lines and not lines[-1].strip():
            lines.pop()
        if not lines:
            raise ConfigError(f"--prompts={value}: the file is empty; it holds one prompt a line")
        if blank := [number for number, line in enumerate(lines, 1) if not line.strip()]:
            raise ConfigError(
                f"--prompts={value}: line {blank[0]} is blank{f', and {len(blank) - 1} more' * (len(blank) > 1)}; "
                "remove it, or give the empty prompt as --prompts="
            )
        prompts += lines
    return prompts


def _kind(value: str) -> str:
    """ "file", "sentence", or what is wrong with it."""
    try:
        path = Path(value)
        if path.is_file():
            return "file"
        if value.strip() and os.sep in value and path.is_dir():
            return "this is a directory"
    except (OSError, ValueError):  # too long for a name, or a null character in it
        return "sentence"
    return "there is no such file" if path.suffix == ".txt" else "sentence"

"""Captions of pictures as token ids, for an encoder that runs in the training step."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging

from zigma_jax.data.source import Source, SourceInfo
from zigma_jax.errors import DataError


@runtime_checkable
class Tokenizer(Protocol):
    """How captions become token ids, as the encoders of `zigma_jax.networks.load_text_encoder` have it.

    `length`: the most tokens of a caption. `padded`: every caption becomes so many, all of which are seen (CLIP).
    `truncated`: captions that were cut so far. `fingerprint`: of all that determines the ids. Called with captions, it
    returns int32 ids and a bool mask, each (captions, m).
    """

    length: int
    padded: bool
    truncated: int

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, captions: Sequence[str], length: int | None = None) -> tuple[np.ndarray, np.ndarray]: ...


@runtime_checkable
class TextEncoder(Protocol):
    """What the data need of a text encoder: a pytree whose leaves are the weights; see `networks.TextEncoder`."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def tokenizer(self) -> Tokenizer: ...

    def tokenize(self, captions: Sequence[str], length: int | None = None) -> tuple[np.ndarray, np.ndarray]: ...
    def encode(self, ids: Any, mask: Any = None) -> Any: ...


@runtime_checkable
class Texts(Protocol):
    """What batches have of the pictures' captions: their states (`TextSet`), or their ids (`TokenizedCaptions`)."""

    info: SourceInfo
    fingerprint: str

    def read(self, index: int, draw: int) -> Any:
        """The caption of a picture that the whole number `draw` chooses. An exception means that it is unreadable."""
        ...

    def batch(self, examples: list[Any]) -> dict[str, np.ndarray]:
        """Examples of `read` as arrays by name."""
        ...


class TokenizedCaptions:
    """Captions as token ids, made while batches are read; nothing is kept on the disk.

    Batches hold `token_ids` int32 (b, m) and, unless the encoder pads every caption itself (CLIP), `token_mask` bool
    (b, m): the tokens to be seen. m is always the most tokens that the encoder takes. Safe to send to other processes.

    A picture without captions has the empty one, which is said at the first of them.

    Attributes:
        info: of the data set.
        length: m.
        fingerprint: of captions and tokenizer.

    Raises:
        DataError: the set has no captions.
    """

    def __init__(self, source: Source, encoder: TextEncoder):
        check_captions(source)
        self._source, self._tokenizer = source, encoder.tokenizer
        self.info, self.length = source.info, encoder.tokenizer.length
        told = ("token ids", source.info.fingerprint, encoder.tokenizer.fingerprint, self.length)
        self.fingerprint = hashlib.sha256(repr(told).encode()).hexdigest()
        self._tokenizer([""])  # a tokenizer that is missing or damaged shows here

    def read(self, index: int, draw: int) -> str:
        """The caption of a picture that `draw` chooses."""
        captions = self._source.captions(index)
        if not captions:
            logging.log_first_n(
                logging.WARNING, "Pictures of %s without captions have the empty one, such as record %d", 1,
                self.info.name, index,
            )  # fmt: skip
            return ""
        return captions[draw % len(captions)]

    def batch(self, examples: list[str]) -> dict[str, np.ndarray]:
        """`token_ids`, and `token_mask` unless the encoder sees all tokens."""
        ids, mask = self._tokenizer(examples, self.length)
        return {"token_ids": ids} if self._tokenizer.padded else {"token_ids": ids, "token_mask": mask}


def check_captions(source: Source) -> None:
    """Raises DataError if a set has no captions."""
    if not source.info.has_captions:
        raise DataError(
            f"{source.info.name} has no captions, which text.encoder asks for: data.caption_column names the feature, "
            "column or member that holds them if it is called otherwise, and a folder has them in its table or in "
            "NAME.txt (docs/data.md)"
        )

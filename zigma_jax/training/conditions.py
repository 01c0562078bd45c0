"""How a batch becomes the model's condition: labels or captions, dropped now and then.

Each way is a pytree that is called with a batch and the samples' keys, as in `samples`. It is an argument of the jitted
step, so that a text encoder in it is neither part of the training state nor constants of the program.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from zigma_jax.models.text import Text
from zigma_jax.training.config import RunConfig
from zigma_jax.training.prompts import null_text, open_text_encoder

if TYPE_CHECKING:  # what reads data is imported where it is used, so that the training step needs none of it
    from zigma_jax.data.captions import Texts
    from zigma_jax.data.sources import Source


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labels:
    """The batch's labels; None if it has none.

    Attributes:
        dropout: the chance that the null class takes a label's place.
        null: the null class.
    """

    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    null: int = dataclasses.field(default=0, metadata={"static": True})

    def __call__(self, batch: dict[str, Array], keys: Key[Array, " b"]) -> Int[Array, " b"] | None:
        if "label" not in batch:
            return None
        labels = batch["label"].astype(jnp.int32)  # uint8 could not hold the null class of 256 classes
        return jnp.where(_dropped(keys, self.dropout), self.null, labels) if self.dropout else labels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Captions:
    """The tokens of the batch's captions.

    Attributes:
        null: the empty caption's tokens, (1, m, width).
        dropout: the chance that they take a caption's place.
        encoder: a frozen text encoder on the devices, for batches that have token ids; None for those with tokens.
    """

    null: Text
    dropout: float = dataclasses.field(metadata={"static": True})
    encoder: Any = None

    def __call__(self, batch: dict[str, Array], keys: Key[Array, " b"]) -> Text:
        mask = batch.get("token_mask")
        if self.encoder is None:
            text = Text(batch["tokens"], mask)
        else:  # as they would come from an encoded set
            text = Text(self.encoder.encode(batch["token_ids"], mask).astype(jnp.float16), mask)
        if not self.dropout:
            return text
        dropped = _dropped(keys, self.dropout)
        return jax.tree.map(lambda a, b: jnp.where(dropped.reshape(-1, *[1] * (a.ndim - 1)), b, a), text, self.null)


Conditions = Labels | Captions
UNCONDITIONAL = Labels()  # labels as they are, if there are any


def _dropped(keys: Key[Array, " b"], chance: float) -> Bool[Array, " b"]:
    return jax.vmap(jax.random.uniform)(keys) < chance


def labels_of(config: RunConfig) -> Labels:
    """For models of classes, and for those without a condition."""
    return Labels(config.train.label_dropout, config.model.num_classes)


@dataclasses.dataclass(frozen=True)
class ConditionSource:
    """How the records of a run become its conditions.

    Attributes:
        conditions: for the training step.
        texts: what batches are to have of captions; None without text.
        encoder: the text encoder, for prompts; None without text.
    """

    conditions: Conditions
    texts: "Texts | None" = None
    encoder: Any = None


def open_encoder(config: RunConfig, source: "Source") -> Any:
    """The run's text encoder, None without one, after everything that can be wrong with it has been looked at.

    It takes no time, and belongs before whatever takes some: before pictures are encoded.

    Raises as `open_text_encoder`, and DataError if the records have no captions.
    """
    encoder = open_text_encoder(config.text, config.model.context_size)
    if encoder is not None:
        from zigma_jax.data.captions import check_captions

        check_captions(source)
    return encoder


def open_conditions(config: RunConfig, source: "Source", encoder: Any) -> tuple[ConditionSource, RunConfig]:
    """Finds or makes what `config.text` asks for, with a progress bar; all processes call it.

    encoder: of `open_encoder`.

    Returns, too, the configuration with what was found out on the way and has to be kept with the run: which weights
    of the encoder, and which commit of them.

    Raises as `zigma_jax.data.encoded_text.text_set`.
    """
    text = config.text
    if encoder is None:
        return ConditionSource(labels_of(config)), config
    from zigma_jax.data.captions import TokenizedCaptions
    from zigma_jax.data.encoded_text import text_set

    if text.cache == "step":
        texts, in_step = TokenizedCaptions(source, encoder), encoder
    else:
        texts = text_set(source, encoder, cache=text.cache, max_bad_fraction=config.data.max_bad_fraction)
        in_step = None
    conditions = Captions(null_text(encoder, texts.length), config.train.label_dropout, in_step)
    text = dataclasses.replace(text, fingerprint=encoder.fingerprint)
    if encoder.place.startswith("hf://"):  # which has the commit in it
        text = dataclasses.replace(text, encoder=encoder.place, weights=None)
    return ConditionSource(conditions, texts, encoder), dataclasses.replace(config, text=text)

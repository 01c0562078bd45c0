"""What a text-conditioned model is given: tokens, and which of them are captions' and which fill up."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


class Text(NamedTuple):
    """The tokens of captions.

    Attributes:
        tokens: (b, m, width) states of a text encoder.
        mask: (b, m), True for the tokens that are to be seen; None: all of them, as CLIP's padding is seen.
    """

    tokens: Float[Array | np.ndarray, "b m width"]
    mask: Bool[Array | np.ndarray, "b m"] | None = None


def mean_over_tokens(
    tokens: Float[Array | np.ndarray, "b m hidden"], mask: Bool[Array | np.ndarray, "b m"] | None
) -> Float[Array, "b hidden"]:
    """The mean of the tokens that are seen, in float32; zero for a caption that has none."""
    tokens = tokens.astype(jnp.float32)
    if mask is None:
        return jnp.mean(tokens, axis=1)
    seen = mask.astype(jnp.float32)
    return jnp.einsum("bm,bmh->bh", seen, tokens) / jnp.maximum(jnp.sum(seen, axis=1, keepdims=True), 1)

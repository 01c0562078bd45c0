"""Random draws that belong to a sample: how samples are split over batches and devices never changes one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32

Keys = Key[Array, "..."] | UInt32[Array, "..."]


def per_sample_keys(key: Keys, batch: int) -> Key[Array, "b"]:
    """One typed PRNG key a sample.

    `key` is one key, of which sample i gets `fold_in(key, i)`, or already a key for each sample. Raw keys (of
    `jax.random.PRNGKey`) will do too.

    Raises:
        ValueError: `key` holds neither one key nor `batch` of them.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key holds keys of shape {key.shape}; give one key, or one for each of the {batch} samples")
    return key


def fold_in_each(keys: Key[Array, "b"], data: int | Array) -> Key[Array, "b"]:
    """`fold_in(key, data)` for each key."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def normal_like(keys: Key[Array, "b"], x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Standard normal noise of x's shape and dtype, sample i of it from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)

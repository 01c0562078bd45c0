"""What turns samples, times and positions into vectors, and tokens back into samples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from zigma_jax.models.initializers import normal_002, zeros


def patchify(x: Float[Array, "b *grid c"], patch_size: int) -> Float[Array, "b L p"]:
    """Cuts the last two grid axes into patches: tokens in raster order, frame after frame, of p·p·c values each.

    A token's values are ordered (row in patch, column in patch, channel).
    """
    b, *frames, height, width, c = x.shape
    p = patch_size
    x = x.reshape(b, *frames, height // p, p, width // p, p, c)
    x = jnp.swapaxes(x, -4, -3)
    return x.reshape(b, -1, p * p * c)


def unpatchify(tokens: Float[Array, "b L p"], sample_shape: tuple[int, ...], patch_size: int) -> Float[Array, "b ..."]:
    """Inverse of `patchify`."""
    *frames, height, width, c = sample_shape
    p = patch_size
    x = tokens.reshape(tokens.shape[0], *frames, height // p, width // p, p, p, c)
    x = jnp.swapaxes(x, -4, -3)
    return x.reshape(-1, *sample_shape)


def sincos_table(grid: tuple[int, ...], size: int) -> np.ndarray:
    """Fixed positions (L, size) in float32: half of the features encode the column, half the row (MAE's order).

    The frames of a video share one table. Source: `get_2d_sincos_pos_embed` of model_zigma.py.
    """
    *frames, rows, columns = grid
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    omega = 1.0 / 10000 ** (np.arange(size // 4, dtype=np.float64) / (size / 4.0))

    def encode(position):
        angle = position.reshape(-1, 1) * omega
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    table = np.concatenate([encode(column), encode(row)], axis=1).astype(np.float32)
    return np.tile(table, (math.prod(frames), 1))


def sinusoidal(t: Float[Array, " b"], size: int, max_period: float = 10_000.0) -> Float[Array, "b size"]:
    """Cosines, then sines, of t at `size // 2` frequencies from 1 down to 1 / max_period."""
    half = size // 2
    frequency = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = t.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedding(nnx.Module):
    """Time in [0, 1] → sinusoids of 1000·t → Linear → SiLU → Linear (`TimestepEmbedder` of model_zigma.py)."""

    frequencies = 256

    def __init__(self, hidden_size: int, *, rngs: nnx.Rngs):
        self.linear_in = nnx.Linear(self.frequencies, hidden_size, kernel_init=normal_002, bias_init=zeros, rngs=rngs)
        self.linear_out = nnx.Linear(hidden_size, hidden_size, kernel_init=normal_002, bias_init=zeros, rngs=rngs)

    def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b hidden"]:
        """Embeds t (b,) in [0, 1]; in float32 whatever the model computes in, since 1000·t needs its digits."""
        return self.linear_out(jax.nn.silu(self.linear_in(sinusoidal(1000.0 * t, self.frequencies))))

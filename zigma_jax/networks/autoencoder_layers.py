"""What the autoencoders are made of: convolutions, group norms and attention that spare memory on large pictures.

A large picture is computed layer by layer, and each layer in strips of rows, one after the other. A group norm needs
the statistics of the whole picture: tiles that went through the whole network one by one would each see their own, and
come out in different colours. Strips within a layer see the same statistics, so that the result is that of the whole
picture and has no seams. Only a layer's input and output are kept, not the normalized copy or the enlarged picture in
between.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from zigma_jax.networks.weight_file import WeightFile

_EPSILON = 1e-6  # of the group norms of AutoencoderKL
Pixelwise = Callable[[Array], Array]


class Conv(nnx.Module):
    """A convolution with a square window on pictures with zeros around them.

    Args:
        file: where `name`.weight (out, into, window, window) and `name`.bias (out,) are taken from.
        dtype: of the kernel, and of what the convolution takes and returns.
    """

    def __init__(self, file: WeightFile, name: str, into: int, out: int, window: int = 3, *, bias: bool = True, dtype):
        kernel = file.take(f"{name}.weight", out, into, window, window)
        self.kernel = nnx.Param(jnp.asarray(kernel.transpose(2, 3, 1, 0), dtype))
        self.bias = nnx.Param(jnp.asarray(file.take(f"{name}.bias", out), dtype)) if bias else None
        self.window = window

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        *,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        enlarge: bool = False,
        prepare: Pixelwise | None = None,
        residual: Float[Array, "b h2 w2 c3"] | None = None,
        shortcut: Pixelwise | None = None,
        whole: int | None = None,
    ) -> Float[Array, "b h2 w2 c2"]:
        """conv(enlarged(prepare(x))) + shortcut(residual).

        Args:
            stride: of the convolution; the picture's sides are multiples of it.
            padding: rows of zeros above and below, columns left and right; None: what keeps the size.
            enlarge: each pixel becomes four.
            prepare, shortcut: act on each pixel alone; None: leave it as it is.
            residual: is added to the result.
            whole: numbers of a picture's layer, the larger of input and output, up to which it is computed in one
                piece, and above in strips; None: always in one piece.
        """
        prepare, shortcut = prepare or _same, shortcut or _same
        above, below = padding or (self.window // 2, self.window // 2)
        b, height, width, into = x.shape
        out = self.kernel.shape[-1]
        scale = 2 if enlarge else 1
        height, width = height * scale // stride, width * scale // stride
        strips = _strips(height, height * width * max(into * stride**2, out), whole)
        if strips == 1:
            y = prepare(x)
            y = self._convolve(_enlarged(y) if enlarge else y, stride, (above, below), (above, below))
            return y if residual is None else y + shortcut(residual)

        rows = height // strips

        def one(i, result):
            start = i * rows
            if enlarge:  # one row more above and below than the window wants, since rows come in pairs
                y = _enlarged(prepare_rows(x, start // 2 - 1, rows // 2 + 2, prepare))[:, 1:-1]
            else:
                y = prepare_rows(x, start * stride - above, (rows - 1) * stride + self.window, prepare)
            y = self._convolve(y, stride, (0, 0), (above, below))
            if residual is not None:
                y = y + shortcut(lax.dynamic_slice_in_dim(residual, start, rows, axis=1))
            return lax.dynamic_update_slice_in_dim(result, y, start, axis=1)

        return lax.fori_loop(0, strips, one, jnp.zeros((b, height, width, out), self.kernel.dtype))

    def _convolve(self, x, stride: int, *padding: tuple[int, int]):
        y = lax.conv_general_dilated(
            x, self.kernel[...], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y if self.bias is None else y + self.bias[...]


class Norm(nnx.Module):
    """A group norm over pictures, in float32 whatever they are."""

    def __init__(self, file: WeightFile, name: str, channels: int, groups: int, epsilon: float = _EPSILON):
        self.gain = nnx.Param(jnp.asarray(file.take(f"{name}.weight", channels)))
        self.bias = nnx.Param(jnp.asarray(file.take(f"{name}.bias", channels)))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: Float[Array, "b h w c"], then: Pixelwise = lambda x: x) -> Pixelwise:
        """Takes the statistics of the whole of `x`; what it returns normalizes any rows of `x`, and applies `then`."""
        b, h, w, c = x.shape
        grouped = x.astype(jnp.float32).reshape(b, h, w, self.groups, c // self.groups)
        mean = grouped.mean((1, 2, 4), keepdims=True)
        variance = jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)

        def each(values):
            return jnp.broadcast_to(values, (b, 1, 1, self.groups, c // self.groups)).reshape(b, 1, 1, c)

        mean, scale = each(mean), each(lax.rsqrt(variance + self.epsilon)) * self.gain[...]
        return lambda rows: then((rows.astype(jnp.float32) - mean) * scale + self.bias[...]).astype(rows.dtype)


def attend(
    q: Float[Array, "b n c"], k: Float[Array, "b n c"], v: Float[Array, "b n c"], whole: int | None = None
) -> Float[Array, "b n c"]:
    """Attention of one head, exact; above `whole` weights a picture the queries come in several parts, one by one."""
    b, n, c = q.shape

    def some(q):
        logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * c**-0.5, axis=-1).astype(v.dtype)
        return jnp.einsum("bqk,bkc->bqc", weights, v)

    parts = _strips(n, n * n, whole)
    if parts == 1:
        return some(q)
    pieces = lax.map(some, jnp.moveaxis(q.reshape(b, parts, n // parts, c), 1, 0))
    return jnp.moveaxis(pieces, 0, 1).reshape(b, n, c)


def halves(file: WeightFile) -> tuple[bool, bool]:
    """Whether the file has an encoder, and a decoder; one with neither is taken to lack both."""
    encoder, decoder = (any(name.startswith(half) for name in file.tensors) for half in ("encoder.", "decoder."))
    return encoder or not decoder, decoder or not encoder


def prepare_rows(x: Float[Array, "b h w c"], start, count: int, prepare: Pixelwise) -> Float[Array, "b count w c"]:
    """`prepare` of the rows from `start` on, zeros where there are none; `start` may be traced, and lies near `x`."""
    height = x.shape[1]
    there = min(count, height)
    first = jnp.clip(start, 0, height - there)
    piece = prepare(lax.dynamic_slice_in_dim(x, first, there, axis=1))
    piece = jnp.pad(piece, ((0, 0), (count, count), (0, 0), (0, 0)))
    return lax.dynamic_slice_in_dim(piece, count + start - first, count, axis=1)


def _strips(rows: int, numbers: int, whole: int | None) -> int:
    """The number of strips: 1 up to `whole` numbers, above so many that each has a quarter of it at most.

    It divides `rows`, and leaves an even number in each strip, as enlarged pictures need.
    """
    if whole is None or numbers <= whole:
        return 1
    return next(n for n in range(-(-4 * numbers // whole), rows + 1) if rows % (2 * n) == 0 or 2 * n > rows)


def _same(x: Array) -> Array:
    return x


def _enlarged(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)

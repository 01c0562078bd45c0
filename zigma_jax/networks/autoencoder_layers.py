"""What the autoencoders are made of: convolutions, group norms and attention that spare memory on large pictures.

A large picture is computed layer by layer, and each layer in strips of rows, one after the other. A group norm needs
the statistics of the whole picture: tiles that went through the whole network one by one would each see their own, and
come out in different colours. Strips within a layer see the same statistics, so that the result is that of the whole
picture and has no seams. Only a layer's input and output are kept, not the normalized copy in between; and an enlarged
picture, the largest of all, is not kept either: its rows are computed whenever they are read.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from zigma_jax.networks.weight_file import WeightFile

Pixelwise = Callable[[Array], Array]


class Conv(nnx.Module):
    """A convolution with a square window on pictures with zeros around them; see `Layers.conv`."""

    def __init__(self, kernel: Float[Array, "k k into out"], bias: Float[Array, "out"] | None, whole: int | None):
        self.kernel = nnx.Param(kernel)
        self.bias = None if bias is None else nnx.Param(bias)
        self.whole = whole

    def __call__(
        self,
        x: "Float[Array, 'b h w c'] | Enlarged",
        *,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        prepare: Pixelwise | None = None,
        residual: "Float[Array, 'b h2 w2 c3'] | Enlarged | None" = None,
        shortcut: Pixelwise | None = None,
    ) -> Float[Array, "b h2 w2 c2"]:
        """conv(prepare(x)) + shortcut(residual).

        Args:
            stride: of the convolution; the picture's sides are multiples of it.
            padding: rows of zeros above and below, columns left and right; None: what keeps the size.
            prepare, shortcut: act on each pixel alone; None: leave it as it is.
            residual: is added to the result.
        """
        prepare, shortcut = prepare or _same, shortcut or _same
        (window, _, into, out), (b, height, width, _) = self.kernel.shape, x.shape
        above, below = padding or (window // 2, window // 2)
        height, width = height // stride, width // stride
        strips = strips_of(height, height * width * max(into * stride**2, out), self.whole)
        if strips == 1:
            y = self.apply(prepare(_rows(x)), stride, (above, below), (above, below))
            return y if residual is None else y + shortcut(_rows(residual))

        def some(start, count):
            y = padded_rows(x, start * stride - above, (count - 1) * stride + window, prepare)
            return self.apply(y, stride, (0, 0), (above, below))

        if isinstance(residual, jax.Array) and shortcut is _same:  # the sum takes the residual's place
            return by_strips(lambda start, count, old: some(start, count) + old, strips, residual)
        # Made from `x`, or else XLA may make all layers' at the beginning and keep them until they are wanted.
        empty = jnp.broadcast_to((_rows(x, 0, 1)[0, 0, 0, 0] * 0).astype(self.kernel.dtype), (b, height, width, out))
        if residual is None:
            return by_strips(lambda start, count, _: some(start, count), strips, empty)
        return by_strips(
            lambda start, count, _: some(start, count) + shortcut(_rows(residual, start, count)), strips, empty
        )

    def enlarged(self, x: Float[Array, "b h w c"]) -> "Float[Array, 'b 2*h 2*w c2'] | Enlarged":
        """The convolution of the picture whose pixels have each become four; if it is large its rows are not kept."""
        result = Enlarged(self, x)
        return result.rows() if strips_of(result.shape[1], _numbers(result), self.whole) == 1 else result

    def apply(
        self,
        x: Float[Array, "b h w c"],
        stride: int = 1,
        rows: tuple[int, int] = (0, 0),
        columns: tuple[int, int] = (0, 0),
    ) -> Float[Array, "b h2 w2 c2"]:
        """The convolution in one piece, with so many rows and columns of zeros around."""
        y = lax.conv_general_dilated(
            x, self.kernel[...], (stride, stride), (rows, columns), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y if self.bias is None else y + self.bias[...]


class Enlarged:
    """What `Conv.enlarged` makes of a picture `x`, its rows computed when they are read, and as often.

    It stands for an array of that `shape`, where layers take one.
    """

    def __init__(self, conv: Conv, x: Float[Array, "b h w c"]):
        b, h, w, _ = x.shape
        self.conv, self.x, self.shape = conv, x, (b, 2 * h, 2 * w, conv.kernel.shape[-1])

    def rows(self, start: Any = 0, count: int | None = None) -> Float[Array, "b count w c"]:
        """Rows from `start` on, all within the picture; None: all there are."""
        if count is None:
            return self.conv.apply(_double(self.x), 1, (1, 1), (1, 1))
        first = (start - 1) // 2
        y = _double(padded_rows(self.x, first, count // 2 + 2, _same))
        y = lax.dynamic_slice_in_dim(y, start - 1 - 2 * first, count + 2, axis=1)
        return self.conv.apply(y, 1, (0, 0), (1, 1))


class Norm(nnx.Module):
    """A group norm, in float32 whatever the pictures are; see `Layers.norm`."""

    def __init__(
        self, gain: Float[Array, "c"], bias: Float[Array, "c"], groups: int, epsilon: float, whole: int | None
    ):
        self.gain, self.bias = nnx.Param(gain), nnx.Param(bias)
        self.groups, self.epsilon, self.whole = groups, epsilon, whole

    def __call__(self, x: "Float[Array, 'b h w c'] | Enlarged", then: Pixelwise | None = None) -> Pixelwise:
        """Takes the statistics of the whole of `x`; what it returns normalizes any rows of `x`, and applies `then`."""
        b, height, _, c = x.shape
        strips = strips_of(height, _numbers(x), self.whole)

        def moments(rows):
            grouped = rows.astype(jnp.float32).reshape(b, *rows.shape[1:3], self.groups, c // self.groups)
            mean = grouped.mean((1, 2, 4), keepdims=True)
            return mean, jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)

        if strips == 1:
            mean, variance = moments(_rows(x))
        else:
            rows = height // strips
            means, variances = lax.map(lambda i: moments(_rows(x, i * rows, rows)), jnp.arange(strips))
            mean = means.mean(0)
            variance = variances.mean(0) + jnp.square(means - mean).mean(0)

        def each(values):
            return jnp.broadcast_to(values, (b, 1, 1, self.groups, c // self.groups)).reshape(b, 1, 1, c)

        mean, scale = each(mean), each(lax.rsqrt(variance + self.epsilon)) * self.gain[...]

        def normalize(rows):
            y = (rows.astype(jnp.float32) - mean) * scale + self.bias[...]
            return (y if then is None else then(y)).astype(rows.dtype)

        return normalize


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes layers from a file.

    Attributes:
        file: where their tensors are taken from.
        dtype: of convolutions and what they take and return.
        whole: the numbers of a picture's layer, the larger of input and output, up to which it is computed in one
            piece; above, in strips. None: always in one piece.
    """

    file: WeightFile
    dtype: jnp.dtype
    whole: int | None

    def conv(self, name: str, into: int, out: int, window: int = 3, *, bias: bool = True) -> Conv:
        """Of `name`.weight (out, into, window, window), a matrix if the window is 1, and `name`.bias if it has one."""
        matrix = window == 1 and len(self.file.shape(f"{name}.weight") or ()) == 2
        shape = (out, into) if matrix else (out, into, window, window)
        kernel = self.file.take(f"{name}.weight", *shape).reshape(out, into, window, window).transpose(2, 3, 1, 0)
        offset = jnp.asarray(self.file.take(f"{name}.bias", out), self.dtype) if bias else None
        return Conv(jnp.asarray(kernel, self.dtype), offset, self.whole)

    def norm(self, name: str, channels: int, groups: int, epsilon: float = 1e-6) -> Norm:
        """Of `name`.weight and `name`.bias (channels,)."""
        gain, bias = (jnp.asarray(self.file.take(f"{name}.{part}", channels)) for part in ("weight", "bias"))
        return Norm(gain, bias, groups, epsilon, self.whole)

    def halves(self) -> tuple[bool, bool]:
        """Whether the file has an encoder, and a decoder; one with neither is taken to lack both."""
        encoder, decoder = (any(name.startswith(half) for name in self.file) for half in ("encoder.", "decoder."))
        return encoder or not decoder, decoder or not encoder


def attend(
    q: Float[Array, "b n c"], k: Float[Array, "b n c"], v: Float[Array, "b n c"], whole: int | None = None
) -> Float[Array, "b n c"]:
    """Attention of one head, exact; above `whole` weights a picture the queries come in several parts, one by one."""
    b, n, c = q.shape

    def some(q):
        logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * c**-0.5, axis=-1).astype(v.dtype)
        return jnp.einsum("bqk,bkc->bqc", weights, v)

    parts = strips_of(n, n * n, whole)
    if parts == 1:
        return some(q)
    pieces = lax.map(some, jnp.moveaxis(q.reshape(b, parts, n // parts, c), 1, 0))
    return jnp.moveaxis(pieces, 0, 1).reshape(b, n, c)


def strips_of(rows: int, numbers: int, whole: int | None) -> int:
    """The number of equal strips: 1 up to `whole` numbers, above so many that each has a quarter of it at most."""
    if whole is None or numbers <= whole:
        return 1
    return next((n for n in range(-(-4 * numbers // whole), rows) if rows % n == 0), rows)


def by_strips(some: Callable[..., Array], strips: int, result: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Replaces `result` strip by strip by `some(start, count, the rows that are there)`."""
    count = result.shape[1] // strips

    def one(i, result):
        rows = some(i * count, count, lax.dynamic_slice_in_dim(result, i * count, count, axis=1))
        return lax.dynamic_update_slice_in_dim(result, rows, i * count, axis=1)

    return lax.fori_loop(0, strips, one, result)


def padded_rows(
    x: "Float[Array, 'b h w c'] | Enlarged", start, count: int, prepare: Pixelwise
) -> Float[Array, "b count w c"]:
    """`prepare` of `count` rows from `start` on, some of them within `x`; where there are none, zeros."""
    there = min(count, x.shape[1])
    first = jnp.clip(start, 0, x.shape[1] - there)
    rows = jnp.pad(prepare(_rows(x, first, there)), ((0, 0), (count, count), (0, 0), (0, 0)))
    return lax.dynamic_slice_in_dim(rows, count + start - first, count, axis=1)


def _rows(x: "Float[Array, 'b h w c'] | Enlarged", start: Any = 0, count: int | None = None) -> Array:
    if isinstance(x, Enlarged):
        return x.rows(start, count)
    return x if count is None else lax.dynamic_slice_in_dim(x, start, count, axis=1)


def _numbers(x) -> int:
    _, h, w, c = x.shape
    return h * w * c


def _same(x: Array) -> Array:
    return x


def _double(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)

"""Linear layers over the last axis."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Linear(nnx.Linear):
    """`nnx.Linear`, computed as a product of two matrices: all axes but the last are one.

    The same numbers. But for the weights' gradient, a product over two axes, XLA for GPUs would keep a second,
    transposed copy of x.
    """

    def __call__(self, x: Float[Array, "*axes in"], out_sharding=None) -> Float[Array, "*axes out"]:
        return super().__call__(x.reshape(-1, x.shape[-1]), out_sharding).reshape(*x.shape[:-1], self.out_features)

    def gated(self, x: Float[Array, "b L in"], gate: Float[Array, "b out"]) -> Float[Array, "b L out"]:
        """The result times a gate, the same for all tokens of a sample.

        Where tokens are many the gate scales the columns of the matrix instead, once a sample: its gradient then
        follows from that of the matrix, and the backward pass neither keeps nor computes again the result without it.
        """
        if x.shape[-2] < self.out_features:  # a matrix a sample would be larger than its tokens
            return gate[:, None] * self(x)
        kernel = self.kernel[...] * gate[:, None].astype(jnp.float32)  # rounded once
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return y if self.bias is None else y + (self.bias[...] * gate).astype(self.dtype)[:, None]

    def parts(self, x: Float[Array, "*axes in"], count: int) -> list[Float[Array, "*axes part"]]:
        """The result, without bias, in `count` equal parts of its last axis, each a product of its own.

        A slice of one product would be copied before an opaque kernel could read it.
        """
        rows, kernel = x.reshape(-1, x.shape[-1]).astype(self.dtype), self.kernel[...]
        columns = jnp.split(kernel, count, axis=-1)
        return [(rows @ part.astype(self.dtype)).reshape(*x.shape[:-1], -1) for part in columns]

"""What every network looks like from outside: pictures in, named features out."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped


class Network(nnx.Module):
    """Called with uint8 pictures (b, h, w, 3), returns the features by name; "pool" is (b, `dim`).

    One that is `of_videos` is called with uint8 videos (b, f, h, w, 3), and its `forward` with what it makes of them.
    """

    dim: int
    of_videos: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network with its weights: a pytree, to be given to jit and `jax.device_put` as it is.

    Pictures sharded over several devices are taken as they are; `jax.device_put(extractor, replicated sharding)` once
    beforehand saves copying the weights at every call.

    Attributes:
        of_videos: whether it takes videos, and not pictures.
        weights: the network's arrays, float32, as an `nnx.State`.
        graphdef: its structure, an `nnx.GraphDef`; `nnx.merge(graphdef, weights)` is the module.
        name: as `load_network` knows it.
        fingerprint: sha256 (hex) of the weights as they were in the file: features are comparable where name and
            fingerprint are equal.
        dim: length of the feature "pool".
        place: where the weights were read, for a run's record; on the hub with the commit.
    """

    weights: Any
    graphdef: Any = dataclasses.field(metadata={"static": True})
    name: str = dataclasses.field(metadata={"static": True})
    fingerprint: str = dataclasses.field(metadata={"static": True})
    dim: int = dataclasses.field(metadata={"static": True})
    place: str = dataclasses.field(default="", metadata={"static": True})
    of_videos: bool = dataclasses.field(default=False, metadata={"static": True})

    @staticmethod
    def of(name: str, network: Network, fingerprint: str, place: str = "") -> "Extractor":
        graphdef, weights = nnx.split(network)
        return Extractor(weights, graphdef, name, fingerprint, network.dim, place, network.of_videos)

    def __call__(self, images: Shaped[Array | np.ndarray, "..."]) -> dict[str, Float[Array, "b ..."]]:
        """Features of pictures (b, H, W, 3), or videos (b, F, H, W, 3), uint8, of any size; compiled once a shape.

        Returns float32 arrays: "pool" (b, dim), and where the network has them "logits" and "spatial". Each
        picture's features depend on that picture alone. Matrix products and convolutions are computed in full
        float32 on every device.

        Raises:
            ValueError: the pictures are not uint8, or not of this shape.
        """
        if images.dtype != np.uint8:
            raise ValueError(f"images have dtype {images.dtype}: {self.name} takes uint8, 0 … 255")
        wanted = "(batch, frames, height, width, 3)" if self.of_videos else "(batch, height, width, 3)"
        if images.ndim != 4 + self.of_videos or images.shape[-1] != 3 or 0 in images.shape:
            raise ValueError(f"images have shape {images.shape}: {self.name} takes {wanted}")
        return _extract(self.graphdef, self.weights, images, "__call__")

    def forward(self, x: Shaped[Array | np.ndarray, "..."]) -> dict[str, Float[Array, "b ..."]]:
        """The same of what a network of videos makes of them: of I3D floats (b, f, 224, 224, 3) in [-1, 1].

        Raises AttributeError for a network of pictures.
        """
        if not self.of_videos:
            raise AttributeError(f"{self.name}: only networks of videos have an input of their own")
        return _extract(self.graphdef, self.weights, x, "forward")


@partial(jax.jit, static_argnums=(0, 3))
def _extract(graphdef, weights, x, method):
    # GPUs and TPUs would otherwise round the factors of every product to 10 or 8 bits.
    with jax.default_matmul_precision("highest"):
        return getattr(nnx.merge(graphdef, weights), method)(x)

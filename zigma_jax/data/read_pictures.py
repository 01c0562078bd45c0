"""Pictures from files to arrays: what `zigma_jax.sample` wrote, or any directory of pictures."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from zigma_jax.data.datasets.folder import SUFFIXES
from zigma_jax.data.images import center_crop, decode, to_float


def read_pictures(
    path: Path, sample_shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "n ..."], Int[np.ndarray, " n"] | None]:
    """Samples (n, *sample_shape), float32 in [-1, 1], and their labels (n,) where they are known.

    path: an .npz with `samples` and perhaps `labels`; a directory that holds such a samples.npz; or a directory of
    pictures, which are taken in order of their names and cropped and resized as for training.

    Raises:
        ValueError: no pictures, or samples of another shape.
    """
    if (path / "samples.npz").is_file():
        path = path / "samples.npz"
    if path.suffix == ".npz":
        with np.load(path) as file:
            if "samples" not in file:
                raise ValueError(f"{path}: there is no array `samples`, but {', '.join(file) or 'none'}")
            samples, labels = file["samples"], file.get("labels")
        if samples.shape[1:] != sample_shape or not len(samples):
            wanted = ", ".join(map(str, sample_shape))
            raise ValueError(f"{path}: samples of shape {samples.shape}, where (n, {wanted}) are wanted")
        return samples.astype(np.float32), labels
    if not path.is_dir():
        raise ValueError(f"{path}: neither a directory of pictures nor an .npz")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{path}: there are no pictures in it ({', '.join(SUFFIXES)})")
    if len(sample_shape) != 3 or sample_shape[-1] != 3:
        raise ValueError(f"{path}: pictures are (height, width, 3), and {sample_shape} is wanted; give an .npz")
    return np.stack([to_float(center_crop(decode(file.read_bytes()), sample_shape[:2])) for file in files]), None

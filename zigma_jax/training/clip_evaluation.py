"""What evaluations of clips measure beside the distances of pictures: frames one by one, and motion."""

import tempfile
from collections.abc import Iterator, Mapping

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from zigma_jax import processes
from zigma_jax.data.pictures.sets import Pictures
from zigma_jax.data.sources import Source
from zigma_jax.errors import MissingPackageError, WeightsError
from zigma_jax.files import AnyPath, in_bucket
from zigma_jax.metrics import changes, frozen, motion, shuffled
from zigma_jax.metrics.features import Share, of_all
from zigma_jax.networks import Extractor, load_network
from zigma_jax.training.evaluation import features_path, measure, reference_features, with_bar

CLIPS = 2048
"""How many samples and clips of the data set are compared unless told otherwise: StyleGAN-V's protocol for FVD."""
NETWORK, OF_FRAMES = "transnetv2", "effnet"


def on_disk(pictures: Pictures, directory: AnyPath) -> Pictures:
    """The same, drawn once: the first time that they are gone through to the end they are kept in a file without a
    name in `directory` (or, of a bucket, on this machine), and read from it afterwards."""
    file, whole = tempfile.TemporaryFile(dir=None if in_bucket(directory) else directory), False  # noqa: SIM115 - lives as long as what returns

    def batches(batch_size: int) -> Iterator[UInt8[np.ndarray, "_b ..."]]:
        nonlocal whole
        if whole:
            item = int(np.prod(pictures.size)) * 3
            for first in range(0, pictures.count, batch_size):
                file.seek(first * item)
                data = file.read(min(batch_size, pictures.count - first) * item)
                yield np.frombuffer(data, np.uint8).reshape(-1, *pictures.size, 3)
            return
        file.seek(0)
        for batch in pictures.batches(batch_size):
            file.write(np.ascontiguousarray(batch).data)
            yield batch
        whole = True

    return Pictures(pictures.count, pictures.size, pictures.about, batches)


def spoilt(originals: Pictures) -> dict[str, Pictures]:
    """Copies of real clips that no measure should take for real: standing still, and out of order."""
    return {
        "frozen": originals.changed(frozen, "the first frame again and again"),
        "shuffled": originals.changed(shuffled, "frames in another order"),
    }


def of_single_frames(
    sets: Mapping[str, Pictures],
    originals: Pictures,
    dataset: Source,
    batch_size: int,
    mesh: Mesh,
    apart_from: Extractor,
) -> dict[str, dict[str, float]]:
    """The Fréchet distance of single frames, as pictures, for each of the sets; none if the packaged network of
    pictures is not installed, or is `apart_from`, the network that was used already."""
    if not apart_from.of_videos:
        return {name: {} for name in sets}
    try:
        extractor = load_network(OF_FRAMES)
    except (MissingPackageError, WeightsError):
        return {name: {} for name in sets}
    path = features_path(dataset, originals, extractor)
    reference = reference_features(path, extractor, originals, batch_size, mesh)
    tables = {}
    for name, clips in sets.items():
        distances = measure(extractor, clips, reference, ["fd"], batch_size, mesh, f"{name}, single frames")
        tables[name] = {f"{label}, single frames": value for label, value in distances.items()}
    return tables


def of_motion(sets: Mapping[str, Pictures], originals: Pictures, batch_size: int) -> dict[str, dict[str, float]]:
    """See `metrics.motion`, for each of the sets."""
    if originals.size[0] < 2:
        return {name: {} for name in sets}
    reference = _changes(originals, batch_size, "reference (motion)")
    return {name: motion(_changes(clips, batch_size, f"{name}, motion"), reference) for name, clips in sets.items()}


def _changes(clips: Pictures, batch_size: int, name: str) -> Float[np.ndarray, "n f"]:
    found = []
    for batch in with_bar(clips, max(1, batch_size // clips.size[0]), name):
        total, mine = batch if isinstance(batch, Share) else Share.of(batch)
        filled = np.resize(mine, (-(-total // processes.count()), *mine.shape[1:]))  # as many on every process
        found.append(of_all(changes(filled))[:total])
    return np.concatenate(found)

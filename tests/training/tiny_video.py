"""A run on clips small enough for tests: four frames of 8 pixels of faces that move."""

from tests.training.tiny import tiny_config
from zigma_jax.training.config import RunConfig

FIELDS = {
    "data.name": "avatars_moving/tiny",
    "data.frames": 4,
    "data.stride": 2,
    "model.scan": "video_sst",
    "model.depth": 3,
    "model.num_classes": 4,
    "train.batch_size": 8,
    "train.steps": 4,
}


def tiny_video_config(data_dir, **changes) -> RunConfig:
    """As `tiny_config`."""
    return tiny_config(data_dir, **(FIELDS | {name.replace("__", "."): value for name, value in changes.items()}))

"""Small prepared data sets, shared by the tests of a process."""

import pytest

from zigma_jax.data.pipeline import DataConfig, ImageDataset, make_dataset


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def avatars(data_dir):
    """A function from keyword arguments to `avatars/tiny`: 64 pictures of 32 pixels, 20 classes."""

    def make(global_batch: int = 8, seed: int = 0, split: str = "train", **options) -> ImageDataset:
        shared = {k: options.pop(k) for k in ("process_index", "process_count", "num_classes") if k in options}
        options = {"image_size": 16, **options}
        config = DataConfig(name="avatars/tiny", data_dir=data_dir, split=split, **options)
        return make_dataset(config, global_batch=global_batch, seed=seed, **shared)

    return make

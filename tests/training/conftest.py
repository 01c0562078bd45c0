"""One prepared data set for all tests of a worker."""

import pytest

from zigma_jax.data.sources import prepare


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    prepare("avatars/tiny", str(directory))
    return directory

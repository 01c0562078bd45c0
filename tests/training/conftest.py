"""One prepared data set for all tests of a worker."""

import pytest

from tests.training.states import make_state
from zigma_jax.data.sources import prepare
from zigma_jax.training.checkpoint import Checkpointer


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    prepare("avatars/tiny", str(directory))
    return directory


@pytest.fixture
def saved(tmp_path):
    """A run with checkpoints of steps 20 and 40."""
    with Checkpointer(tmp_path) as ckpt:
        for step in (20, 40):
            assert ckpt.save(step, make_state(step), {"config": {"seed": 1}, "data_iterator": b"\x00\xff"})
    return tmp_path

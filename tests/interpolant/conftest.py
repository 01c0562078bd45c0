import pathlib

import jax
import jaxtyping
import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden():
    """Numbers of the original transport code, see the goldens' generator."""
    with np.load(pathlib.Path(__file__).parents[1] / "goldens" / "interpolant.npz") as file:
        return dict(file)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def as_a_user():
    """Without run-time shape checks, which would refuse bad input before the library's own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)

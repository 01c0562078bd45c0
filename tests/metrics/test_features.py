"""Features of pictures: neither batches nor devices change them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.metrics.toy import ToyNetwork, features_of, pictures
from zigma_jax.metrics import FeatureExtractor, Gaussian, extract

PICTURES = pictures(83)


def mesh_of(devices):
    return Mesh(np.asarray(jax.devices()[:devices]).reshape(-1, 1), ("data", "fsdp"))


def split(batch):
    return [PICTURES[first : first + batch] for first in range(0, len(PICTURES), batch)]


@pytest.mark.parametrize(("devices", "batch"), [(8, 83), (8, 7), (8, 64), (1, 7), (3, 16)])
def test_batches_and_devices_change_no_bit(devices, batch):
    expected = extract(ToyNetwork(), [PICTURES], mesh=mesh_of(1))
    features = extract(ToyNetwork(), split(batch), mesh=mesh_of(devices))
    assert (features.count, features.image_size) == (83, (4, 4))
    assert features.rows.keys() == {"pool", "logits"}
    assert features.gaussians.keys() == {"pool", "spatial"}
    for name, rows in features.rows.items():
        np.testing.assert_array_equal(rows, expected.rows[name])
    for name, gaussian in features.gaussians.items():
        assert gaussian.count == 83
        np.testing.assert_array_equal(gaussian.mean, expected.gaussians[name].mean)
        np.testing.assert_array_equal(gaussian.covariance, expected.gaussians[name].covariance)


def test_statistics_are_of_the_features():
    features = features_of(200)
    assert isinstance(ToyNetwork(), FeatureExtractor)
    expected = Gaussian.of(np.asarray(ToyNetwork()(pictures(200))["pool"]))
    np.testing.assert_allclose(features.gaussians["pool"].mean, expected.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(features.gaussians["pool"].covariance, expected.covariance, rtol=1e-12, atol=1e-12)


def test_kept_rows_are_fewer_statistics_are_of_all():
    everything, features = features_of(200), features_of(200, keep=50)
    assert features.rows["pool"].shape == (50, 6)
    assert (everything.rows["pool"] == features.rows["pool"][:, None]).all(-1).any(1).all()
    np.testing.assert_array_equal(features.gaussians["pool"].mean, everything.gaussians["pool"].mean)


def test_a_network_that_is_a_pytree():
    """Its weights are copied to all devices; the same features come out."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Tree:
        weights: jax.Array
        name: str = dataclasses.field(metadata={"static": True}, default="tree")
        fingerprint: str = dataclasses.field(metadata={"static": True}, default="0" * 64)

        def __call__(self, images):
            return {"pool": images[:, 0, 0].astype(jnp.float32) @ self.weights}

    on_one_device = jax.device_put(jnp.asarray(np.diag([1.0, 2, 4]), jnp.float32), jax.devices()[1])
    features = extract(Tree(on_one_device), split(16))
    np.testing.assert_array_equal(features.rows["pool"], PICTURES[:, 0, 0] * np.array([1, 2, 4], np.float32))


def test_compiled_once():
    class Counted(ToyNetwork):
        traces = 0

        def __call__(self, images):
            type(self).traces += 1
            return super().__call__(images)

    extract(Counted(), split(20))  # the last of 3 pictures
    assert Counted.traces == 1


def test_features_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        features_of(9).count = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "0 pictures"),
        ([PICTURES[:1]], "1 pictures"),
        ([PICTURES, pictures(2)[:, :2]], r"\(2, 4\) pixels after some of \(4, 4\)"),
    ],
)
def test_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        extract(ToyNetwork(), batches)


def test_features_that_are_not_finite():
    class Broken(ToyNetwork):
        def __call__(self, images):
            outputs = super().__call__(images)
            return outputs | {"pool": outputs["pool"].at[5].set(np.nan)}

    with pytest.raises(ValueError, match="sample 5 are not finite"):
        extract(Broken(), [PICTURES])

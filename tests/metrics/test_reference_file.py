"""Features in files: what comes back, what is refused, and that nothing is unpickled."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from tests.metrics.toy import ToyNetwork, features_of, pictures
from zigma_jax.metrics import cached_features, load_features, save_features

SOURCE = {"dataset": "noise", "version": "1.0.0", "split": "train"}


@pytest.fixture
def path(tmp_path):
    save_features(tmp_path / "noise.npz", features_of(40, source=SOURCE))
    return tmp_path / "noise.npz"


def test_everything_comes_back(path):
    saved, loaded = features_of(40, source=SOURCE), load_features(path, ToyNetwork())
    for field in dataclasses.fields(saved):
        before, after = getattr(saved, field.name), getattr(loaded, field.name)
        if field.name == "gaussians":
            assert before.keys() == after.keys()
            for name in before:
                np.testing.assert_array_equal(before[name].covariance, after[name].covariance)
                np.testing.assert_array_equal(before[name].mean, after[name].mean)
                assert before[name].count == after[name].count == 40
        elif field.name == "rows":
            assert before.keys() == after.keys()
            assert all((before[name] == after[name]).all() for name in before)
        else:
            assert before == after


def test_provenance_can_be_read_by_anyone(path):
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["json"]))
        assert file["mu"].shape == (6,)
        assert file["sigma"].shape == (6, 6)
        assert file["feats"].shape == (40, 6)
    assert about.pop("zigma_jax")
    assert about == {
        "format": 1,
        "network": "toy",
        "weights_sha256": ToyNetwork().fingerprint,
        "count": 40,
        "image_size": [4, 4],
        "source": SOURCE,
    }


def test_other_networks_are_refused(path):
    with pytest.raises(ValueError, match=r"noise\.npz is of the network 'toy', what it is used for of 'inception'"):
        load_features(path, ToyNetwork(name="inception"))
    with pytest.raises(ValueError, match="both of 'toy', with other weights"):
        load_features(path, ToyNetwork(seed=1))


def test_files_of_other_programs(tmp_path):
    ours = features_of(40)
    pool, spatial = ours.gaussians["pool"], ours.gaussians["spatial"]
    np.savez(tmp_path / "fid.npz", mu=pool.mean, sigma=pool.covariance)
    loaded = load_features(tmp_path / "fid.npz", ToyNetwork())
    assert (loaded.network, loaded.fingerprint, loaded.count) == ("toy", "", None)
    assert loaded.gaussians.keys() == {"pool"}
    assert not loaded.rows
    np.testing.assert_array_equal(loaded.gaussians["pool"].covariance, pool.covariance)

    more = {"mu_s": spatial.mean, "sigma_s": spatial.covariance, "feats": ours.rows["pool"], "arr_0": pictures(2)}
    np.savez(tmp_path / "all.npz", allow_pickle=False, mu=pool.mean, sigma=pool.covariance, **more)
    loaded = load_features(tmp_path / "all.npz", ToyNetwork())
    np.testing.assert_array_equal(loaded.gaussians["spatial"].mean, spatial.mean)
    np.testing.assert_array_equal(loaded.rows["pool"], ours.rows["pool"])


class Trap:
    """Unpickling it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_unpickled(tmp_path):
    sprung = tmp_path / "sprung"
    trapped = np.empty(1, object)
    trapped[0] = Trap(sprung)
    np.savez(tmp_path / "objects.npz", mu=trapped, sigma=np.eye(1), allow_pickle=True)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Trap(sprung)))
    for name in ("objects.npz", "pickle.npz"):
        with pytest.raises(ValueError, match=f"{name} is (damaged, or holds objects|not an npz)"):
            load_features(tmp_path / name, ToyNetwork())
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros(3)}, "no mu and sigma"),
        ({"mu": np.zeros(3)}, "no sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu \(3,\) and sigma \(4, 4\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "feats": np.zeros((5, 4))}, r"feats \(5, 4\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "json": np.array("{}")}, "'format'"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "json": np.array('{"format": 2}')}, "another version"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "json": np.array("{")}, "not a file of features"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "not a file of features"),
    ],
)
def test_malformed_files(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=rf"bad.npz is not a file of features: .*{message}|bad.npz.*{message}"):
        load_features(tmp_path / "bad.npz", ToyNetwork())


def test_damaged_and_missing_files(path, tmp_path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"noise\.npz is damaged"):
        load_features(path, ToyNetwork())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"noise\.npz is not an npz file"):
        load_features(path, ToyNetwork())
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        load_features(tmp_path / "none.npz", ToyNetwork())
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        save_features(tmp_path / "features", features_of(9))


def test_cache(tmp_path):
    path = tmp_path / "cache" / "noise.npz"
    first = cached_features(path, ToyNetwork(), lambda: [pictures(20)], SOURCE, keep=10)
    again = cached_features(path, ToyNetwork(), lambda: pytest.fail("read twice"), SOURCE, keep=10)
    np.testing.assert_array_equal(first.gaussians["pool"].mean, again.gaussians["pool"].mean)
    assert len(again.rows["pool"]) == 10
    assert [file.name for file in path.parent.iterdir()] == ["noise.npz"]
    with pytest.raises(ValueError, match=r"'split': 'train'.*not of.*'split': 'test'"):
        cached_features(path, ToyNetwork(), list, SOURCE | {"split": "test"})
    with pytest.raises(ValueError, match="other weights"):
        cached_features(path, ToyNetwork(seed=1), list, SOURCE)

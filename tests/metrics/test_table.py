"""The table of metrics: names that say what they are, and what is refused or warned of."""

import dataclasses

import numpy as np
import pytest

from tests.metrics.toy import ToyNetwork, features_of
from zigma_jax.metrics import METRICS, FewSamplesWarning, compute, extract, frechet_distance, table

INCEPTION = ToyNetwork(name="inception")


def test_the_names_of_inception(monkeypatch):
    monkeypatch.setattr(table, "SUBSET", 50)
    a, b = features_of(60, INCEPTION), features_of(50, INCEPTION, seed=1, brightness=200)
    numbers = compute(a, b)
    assert list(numbers) == [
        *("FID", "sFID", "KID", "KID_std", "KID-full"),
        *("precision", "recall", "density", "coverage", "IS", "IS_std"),
    ]
    assert all(type(value) is float and np.isfinite(value) for value in numbers.values())
    assert numbers["FID"] == frechet_distance(a.gaussians["pool"], b.gaussians["pool"])
    assert numbers["sFID"] == frechet_distance(a.gaussians["spatial"], b.gaussians["spatial"])
    assert compute(a, b, ["recall", "fd"]) == {"recall": numbers["recall"], "FID": numbers["FID"]}


def test_no_other_network_has_an_fid():
    network = ToyNetwork(name="effnet", spatial=False)
    a, b = features_of(60, network), features_of(50, network, seed=1)
    assert list(compute(a, b)) == [
        *("FD-effnet", "KD-full-effnet"),
        *("precision-effnet", "recall-effnet", "density-effnet", "coverage-effnet", "IS-effnet", "IS-effnet_std"),
    ]


def test_a_variant_of_inception():
    a = features_of(60, ToyNetwork(name="inception-x"))
    assert list(compute(a, a, ["fd", "recall", "is"])) == ["FID-x", "recall-x", "IS-x", "IS-x_std"]


def test_a_set_against_itself():
    a = features_of(60, INCEPTION)
    numbers = compute(a, a, ["fd", "sfd", "precision", "recall", "density", "coverage"])
    # A trace of about one, in float64.
    assert numbers == pytest.approx(
        {"FID": 0, "sFID": 0, "precision": 1, "recall": 1, "density": 1, "coverage": 1}, abs=1e-12
    )


def test_only_what_the_reference_has():
    a = features_of(60)
    bare = dataclasses.replace(a, rows={}, gaussians={"pool": a.gaussians["pool"]})
    assert list(compute(a, bare)) == ["FD-toy", "IS-toy", "IS-toy_std"]
    with pytest.raises(ValueError, match="'recall': needs the features of at least 6 samples, the reference holds 0"):
        compute(a, bare, ["recall"])
    with pytest.raises(ValueError, match=r"'sfd': the reference has no 'spatial'"):
        compute(a, bare, ["sfd"])
    with pytest.raises(ValueError, match=r"'kd': needs .* 1000 samples, the set holds 60.*kd-full"):
        compute(a, a, ["kd"])
    with pytest.raises(ValueError, match="'is': needs the logits of at least 10 samples, there are 0"):
        compute(bare, a, ["is"])


def test_unknown_names():
    with pytest.raises(ValueError, match=f"'fid', 'lpips': unknown; known are {', '.join(METRICS)}"):
        compute(features_of(9), features_of(9), ["fd", "fid", "lpips"])


def test_other_networks():
    with pytest.raises(ValueError, match="the set is of the network 'toy', the reference of 'inception'"):
        compute(features_of(9), features_of(9, INCEPTION))
    with pytest.raises(ValueError, match="with other weights"):
        compute(features_of(9), features_of(9, ToyNetwork(seed=1)))
    unknown = dataclasses.replace(features_of(9, ToyNetwork(dim=7)), fingerprint="", count=None)
    with pytest.raises(ValueError, match="6 and of 7 dimensions are not of the same network"):
        compute(features_of(9), unknown, ["fd"])


def test_few_samples():
    """Pool has 6 dimensions, spatial 12."""
    few, enough = features_of(6), features_of(13)
    for a, b, who in ((few, enough, "the set"), (enough, few, "the reference")):
        with pytest.warns(FewSamplesWarning, match=f"FD-toy: {who} has 6 samples for 6 .*take more than 6 .*kd-full"):
            compute(a, b, ["fd"])
    compute(features_of(7), enough, ["fd"])  # a warning would be an error
    with pytest.warns(FewSamplesWarning, match="sFD-toy: the set has 7 samples for 12"):
        compute(features_of(7), enough, ["sfd"])


def test_pictures_of_another_size():
    a = features_of(9)
    larger = extract(ToyNetworkAnySize(), [np.zeros((9, 8, 8, 3), np.uint8)])
    with pytest.warns(UserWarning, match=r"\(4, 4\) pixels .* of \(8, 8\)"):
        compute(a, larger, ["fd"])


class ToyNetworkAnySize(ToyNetwork):
    def __call__(self, images):
        return super().__call__(images[:, ::2, ::2])


def test_prdc_is_computed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(table, "prdc", lambda *sets: calls.append(sets) or dict.fromkeys(table.PRDC, 0.5))
    compute(features_of(9), features_of(9), table.PRDC)
    assert len(calls) == 1

"""The probe learns what pictures show, says nothing of what they do not, and is the same every time."""

import dataclasses

import numpy as np
import pytest

from zigma_jax.metrics.probe import ProbeConfig, cached_probe, read, train_probe

CFG = ProbeConfig((8, 8), {"colour": 3, "side": 2}, width=8, steps=120, learning_rate=1e-2, shift=1)


def pictures(count, seed=0):
    """Squares in one of three colours, at the left or the right of a grey picture."""
    rng = np.random.default_rng(seed)
    values = {"colour": rng.integers(0, 3, count), "side": rng.integers(0, 2, count)}
    images = np.full((count, 8, 8, 3), 128, np.uint8)
    for image, colour, side in zip(images, *values.values(), strict=True):
        image[2:6, 1 + 3 * side : 4 + 3 * side] = 255 * np.eye(3)[colour]
    return images, {name: of.astype(np.int32) for name, of in values.items()}


@pytest.fixture(scope="module")
def probe():
    return train_probe(CFG, *pictures(256))


def test_it_reads_every_attribute(probe):
    images, values = pictures(100, seed=1)
    found = read(probe, images, batch_size=64)
    assert {name: of.shape for name, of in found.items()} == {"colour": (100,), "side": (100,)}
    for name, of in found.items():
        assert np.mean(of == values[name]) > 0.97, name


def test_what_it_reads_is_not_what_was_asked_for_if_that_is_shuffled(probe):
    images, values = pictures(300, seed=2)
    shuffled = np.random.default_rng(0).permutation(values["colour"])
    assert np.mean(read(probe, images)["colour"] == shuffled) < 0.45


def test_values_that_do_not_show_are_not_learned_from():
    """Pictures of one colour alone say what it is; were the others counted as the first value, it would win."""
    images, values = pictures(256)
    partly = values | {"colour": np.where(values["colour"] == 0, -1, values["colour"])}
    found = read(train_probe(CFG, images, partly), images)
    seen = values["colour"] > 0
    assert np.mean(found["colour"][seen] == values["colour"][seen]) > 0.97
    assert not np.any(found["colour"] == 0)


def test_it_is_trained_once_and_found_again(tmp_path):
    cfg, calls = dataclasses.replace(CFG, steps=3), []

    def of_the_set():
        calls.append(1)
        return pictures(64)

    images, _ = pictures(20, seed=3)
    path = tmp_path / "probes" / "probe.safetensors"
    first = read(cached_probe(path, cfg, {"records": "a"}, of_the_set), images)
    again = read(cached_probe(path, cfg, {"records": "a"}, of_the_set), images)
    assert len(calls) == 1
    np.testing.assert_equal(again, first)
    cached_probe(path, cfg, {"records": "b"}, of_the_set)
    cached_probe(path, dataclasses.replace(cfg, seed=1), {"records": "b"}, of_the_set)
    assert len(calls) == 3
    path.write_bytes(b"half a file")
    np.testing.assert_equal(read(cached_probe(path, cfg, {"records": "a"}, of_the_set), images), first)
    assert len(calls) == 4

"""Training on the latents in a set of tars: as they are, without a network's encoder, exact to the sample."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from tests.data.pictures import picture
from tests.data.test_webdataset import Member, npy, tar
from tests.data.toy_autoencoder import ToyAutoencoder
from tests.training.tiny import tiny_config
from zigma_jax.data import latent_sets
from zigma_jax.data.pipeline import BadDataError, DataConfig, make_dataset, open_source
from zigma_jax.data.source import Source
from zigma_jax.data.stored import stored_set
from zigma_jax.errors import ConfigError, DataError
from zigma_jax.training import samples

TOY = ToyAutoencoder.of(factor=8, channels=4)
SHAPE = (3, 2, 4)  # of pictures of (24, 16)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(latent_sets, "_SHARD_SIZES", (8, 8))


def latent(i: int) -> np.ndarray:
    """In the network's units, channels last."""
    return np.random.default_rng(i).standard_normal(SHAPE).astype(np.float32) * 5


def stored(i: int) -> np.ndarray:
    """As it lies in the original's tars."""
    return np.moveaxis(latent(i) * np.float32(0.18215), -1, 0)


def members(i: int, content: bytes | None = None, pictures: bool = True) -> list[Member]:
    large = npy(np.zeros((4, 6, 4), np.float32))
    return [
        *([(f"{i:03}.jpg", picture(8 * i, (24, 16), "JPEG"))] if pictures else []),
        (f"{i:03}.latent.npy", large),
        (f"{i:03}.img_feature256.npy", npy(stored(i)) if content is None else content),
        (f"{i:03}.cls", str(i % 3).encode()),
    ]


def configured(tmp_path: Path, *of_samples: list[Member], **fields) -> DataConfig:
    """Tars of ten samples each."""
    for number, batch in enumerate(itertools.batched(of_samples, 10)):
        tar(tmp_path / "tars" / f"train-{number}.tar", list(itertools.chain(*batch)))
    fields = {"image_size": (24, 16), **fields}
    return DataConfig(name="webdataset", shards=str(tmp_path / "tars"), data_dir=str(tmp_path / "data"), **fields)


@pytest.fixture
def config(tmp_path) -> DataConfig:
    return configured(tmp_path, *(members(i) for i in range(20)))


def test_batches_are_the_latents_in_the_networks_units(config, tmp_path):
    made = stored_set(open_source(config), config, TOY)
    assert made.directory.parent == tmp_path / "tars" / "encoded"
    assert (len(made), made.shape, made.mirrored, made.unreadable) == (20, SHAPE, False, 0)
    dataset = make_dataset(config, global_batch=8, seed=1, num_classes=3, encoded=made)
    for batch in itertools.islice(dataset, 5):
        assert batch.keys() == {"mean", "label", "index", "replaced"}
        wanted = np.stack([latent(i) for i in batch["index"]])
        np.testing.assert_allclose(batch["mean"], wanted, rtol=1e-3)
        np.testing.assert_array_equal(batch["label"], batch["index"] % 3)
    everything = np.stack([latent(i) for i in range(20)])
    np.testing.assert_allclose(made.statistics.mean, everything.mean((0, 1, 2)), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(made.statistics.std, everything.std((0, 1, 2)), rtol=1e-3)


def test_a_run_goes_on_to_the_bit(config):
    made = stored_set(open_source(config), config, TOY)
    expected = list(itertools.islice(make_dataset(config, global_batch=8, encoded=made), 6))
    begun = iter(make_dataset(config, global_batch=8, encoded=made))
    for _ in range(2):
        next(begun)
    resumed = iter(make_dataset(config, global_batch=8, encoded=made))
    resumed.set_state(json.loads(json.dumps(begun.get_state())))
    for wanted, found in zip(expected[2:], resumed, strict=False):
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name])


def test_it_is_written_once_for_any_network_and_anew_for_other_tars(config, tmp_path):
    first = stored_set(open_source(config), config, TOY)
    with mock.patch("zigma_jax.data.stored.fill_share") as fill:
        again = stored_set(open_source(config), config, dataclasses.replace(TOY, name="other", fingerprint="other"))
    fill.assert_not_called()
    assert again.fingerprint == first.fingerprint
    elsewhere = stored_set(open_source(config), config, TOY, cache=f"stored:{tmp_path / 'there'}")
    assert elsewhere.fingerprint == first.fingerprint
    assert elsewhere.directory.is_relative_to(tmp_path / "there")
    tar(tmp_path / "tars" / "train-2.tar", members(20))
    other = stored_set(open_source(config), config, TOY)
    assert (len(other), other.fingerprint != first.fingerprint) == (21, True)


def test_processes_share_the_work(config, tmp_path):
    whole = stored_set(open_source(config), config, TOY)
    there = f"stored:{tmp_path / 'there'}"
    with pytest.raises(DataError, match="all processes share"):
        stored_set(open_source(config), config, TOY, cache=there, process_index=1, process_count=2)
    made = stored_set(open_source(config), config, TOY, cache=there, process_index=0, process_count=2)
    for file in whole.directory.iterdir():
        assert (made.directory / file.name).read_bytes() == file.read_bytes()


BAD = {
    "shape": (npy(np.zeros((4, 2, 3), np.float32)), r"is \(2, 3, 4\), not \(3, 2, 4\)"),
    "NaN": (npy(np.full((4, 3, 2), np.nan, np.float32)), "not finite"),
    "beyond float16": (npy(np.full((4, 3, 2), 1e5, np.float32)), r"reaches 548\d+; float16 ends at 65504"),
    "beyond float32": (npy(np.full((4, 3, 2), 1e300)), "not finite"),
    "cut off": (npy(stored(0))[:-1], "bytes follow"),
    "no array": (b"<html>", "is no latent"),
    "objects": (npy(np.array([{}], object)), "is no latent"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 7])
def test_a_bad_latent_is_counted_named_and_replaced(tmp_path, bad, place):
    content, reason = BAD[bad]
    config = configured(tmp_path, *(members(i, content if i == place else None) for i in range(10)))
    with mock.patch("zigma_jax.data.reads.logging.warning") as warning:
        made = stored_set(open_source(config), config, TOY)
    (call,) = warning.call_args_list
    assert (call.args[1], call.args[3], made.unreadable) == (place, "was left out", 1)
    with pytest.raises(LookupError, match=reason):
        made.read(place, False)
    dataset = make_dataset(config, global_batch=10, encoded=made)
    batch = next(iter(dataset))
    assert (dataset.reads.bad, place in batch["index"]) == (1, False)
    with pytest.raises(BadDataError, match=f"was record {place} in .*{reason}"):
        stored_set(
            open_source(config), dataclasses.replace(config, max_bad_fraction=0.0), TOY, cache=f"stored:{tmp_path}"
        )


def test_a_sample_without_its_latent_is_a_bad_one(tmp_path):
    config = configured(tmp_path, members(0), members(1)[:1] + members(1)[3:], members(2))
    made = stored_set(open_source(config), config, TOY)
    with pytest.raises(LookupError, match=r"sample 001: there is no img_feature256\.npy"):
        made.read(1, False)


def test_tars_of_latents_alone(tmp_path):
    config = configured(tmp_path, *(members(i, pictures=False) for i in range(4)))
    source = open_source(config)
    assert not source.info.has_pictures
    batch = next(iter(make_dataset(config, global_batch=4, encoded=stored_set(source, config, TOY))))
    np.testing.assert_allclose(batch["mean"][0], latent(batch["index"][0]), rtol=1e-3)


def test_other_sizes_channels_and_factors_are_refused_by_name(config):
    source = open_source(config)
    for changed, network in (({"image_size": 32}, TOY), ({}, ToyAutoencoder.of(factor=8, channels=16))):
        with pytest.raises(
            DataError,
            match=r"no latents of \(height, width, channels\) \(\d, \d, \d+\).*; it has latent.npy of \(6, 4, 4\), "
            r"img_feature256.npy of \(3, 2, 4\)$",
        ):
            stored_set(source, dataclasses.replace(config, **changed), network)
    with pytest.raises(ConfigError, match=r"latent.autoencoder: toy has a factor of 4, which must be 8"):
        stored_set(source, config, ToyAutoencoder.of(factor=4, channels=4))


def test_flips_and_sets_without_latents_are_refused(config, tmp_path):
    with pytest.raises(ConfigError, match=r"config.data.flip = True: must be False .* no latents of mirror images"):
        stored_set(open_source(config), dataclasses.replace(config, flip=True), TOY)
    avatars = DataConfig(name="avatars/tiny")
    with pytest.raises(ConfigError, match=r"latent.cache = 'stored': .* data.name='avatars/tiny' has none"):
        stored_set(mock.Mock(spec=Source), avatars, TOY)
    path = tar(tmp_path / "pictures.tar", members(0)[:1])
    pictures = dataclasses.replace(config, shards=str(path))
    with pytest.raises(DataError, match=r"no latents of .*; it has only jpg$"):
        stored_set(open_source(pictures), pictures, TOY)


def test_a_run_that_asks_for_them_trains_on_the_numbers_in_the_tars(config, tmp_path):
    network = dataclasses.replace(TOY, scale=(0.18215,), shift=(0.0,))
    fields: dict[str, Any] = {"shards": config.shards, "image_size": config.size, "name": "webdataset", "flip": False}
    fields = {f"data__{name}": value for name, value in fields.items()}
    run = tiny_config(
        tmp_path,
        **fields,
        model__sample_shape=SHAPE,
        model__patch_size=1,
        latent__cache="stored",
        latent__autoencoder="kl",
    )
    with mock.patch.object(samples, "open_autoencoder", return_value=network):
        source, kept = samples.open_samples(run, open_source(run.data))
    assert (source.autoencoder, kept.latent.scale, kept.latent.cache) == (network, (0.18215,), "stored")
    batch = next(iter(make_dataset(run.data, global_batch=4, encoded=source.encoded)))
    found = source.samples(jax.device_put(samples.inputs(batch, labels=False)), jax.random.split(jax.random.key(0), 4))
    wanted = np.stack([np.moveaxis(stored(i), 0, -1) for i in batch["index"]])
    np.testing.assert_allclose(found, wanted, rtol=1e-3)

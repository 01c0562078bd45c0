"""Encoded sets: the same bytes however they came about, never another network's, exact to the sample."""

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import pickle
import shutil
import subprocess
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import programs
from tests.data.pictures import picture, write
from tests.data.toy_autoencoder import ToyAutoencoder
from zigma_jax.data import encoded, encoded_files, latent_sets
from zigma_jax.data.clips.decode import read_clip
from zigma_jax.data.encoded import describe, encode_share, encoded_set
from zigma_jax.data.pictures.pixels import to_float
from zigma_jax.data.pipeline import BadDataError, DataConfig, make_dataset, one_pass, open_source
from zigma_jax.data.posterior import draw
from zigma_jax.errors import ConfigError, DataError
from zigma_jax.training.samples import pictures

TOY = ToyAutoencoder.of()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Eight shards of the 64 pictures; a device computes two pictures at once."""
    monkeypatch.setattr(latent_sets, "_SHARD_SIZES", (8, 8))
    monkeypatch.setattr(encoded, "_MOST_AT_ONCE", 2)


@pytest.fixture
def config(data_dir):
    return DataConfig(name="avatars/tiny", data_dir=data_dir, image_size=16, flip=True)


@pytest.fixture
def source(config):
    return open_source(config)


def make(source, config, cache, autoencoder=TOY, devices=1, **options):
    options = {"devices": jax.devices()[:devices], **options}
    return encoded_set(source, config, autoencoder, cache=str(cache), **options)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def digest(directory: Path) -> str:
    return hashlib.sha256(repr(sorted(contents(directory).items())).encode()).hexdigest()


@pytest.fixture
def whole(source, config, tmp_path):
    return make(source, config, tmp_path / "whole")


def test_it_holds_the_posterior_of_every_picture_and_its_mirror_image(whole, source, config):
    (batch,) = one_pass(config, batch_size=64)
    for flip in (False, True):
        images = to_float(batch["image"][:, :, ::-1] if flip else batch["image"])
        mean, logvar = TOY.encode(images)
        assert logvar is not None
        found = whole.batch([whole.read(i, flip) for i in range(64)])
        assert {name: (a.shape, a.dtype.name) for name, a in found.items()} == {
            "label": ((64,), "int32"),
            "mean": ((64, 4, 4, 3), "float16"),
            "std": ((64, 4, 4, 3), "float16"),
        }
        np.testing.assert_allclose(found["mean"], mean, atol=1e-3)
        np.testing.assert_allclose(found["std"], np.exp(np.clip(logvar, -30, 20) / 2), rtol=1e-3)
        np.testing.assert_array_equal(found["label"], batch["label"])
    assert (len(whole), whole.shape, whole.mirrored, whole.unreadable) == (64, (4, 4, 3), True, 0)


def test_statistics_are_those_of_draws(whole):
    rows = whole.batch([whole.read(i, flip) for i in range(64) for flip in (False, True)])
    keys = jax.random.split(jax.random.key(0), 128)
    draws = np.asarray(draw(jnp.asarray(rows["mean"]), jnp.asarray(rows["std"]), keys), np.float64)
    np.testing.assert_allclose(whole.statistics.mean, rows["mean"].astype(np.float64).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(whole.statistics.std, draws.std((0, 1, 2)), rtol=0.03)
    variance = rows["mean"].astype(np.float64).var((0, 1, 2)) + (rows["std"].astype(np.float64) ** 2).mean((0, 1, 2))
    np.testing.assert_allclose(whole.statistics.std, np.sqrt(variance), rtol=1e-12)
    normalized = TOY.with_statistics(whole.statistics.scale, whole.statistics.shift).normalize(draws)
    np.testing.assert_allclose(normalized.std((0, 1, 2)), 1, rtol=0.03)
    assert json.loads((whole.directory / "index.json").read_text())["summary"]["std"] == list(whole.statistics.std)


def test_a_set_that_is_there_is_not_made_again(whole, source, config, tmp_path):
    with mock.patch.object(encoded, "encode_share") as encode:
        again = make(source, config, tmp_path / "whole")
    encode.assert_not_called()
    assert (again.fingerprint, again.statistics) == (whole.fingerprint, whole.statistics)


@pytest.mark.parametrize("devices", [3, 8])
def test_any_number_of_devices_writes_the_same_bytes(whole, source, config, tmp_path, devices):
    make(source, config, tmp_path / "other", devices=devices)
    assert contents(tmp_path / "other") == contents(tmp_path / "whole")


def test_two_processes_write_the_same_bytes(whole, source, config, tmp_path):
    cache = str(tmp_path / "other")
    files = describe(source, config, TOY, cache)
    for process in (1, 0):
        encode_share(source, config, TOY, files, jax.devices()[:2], process, 2)
        assert len(list(files.directory.glob("shard-*"))) == (4, 8)[process == 0]
    make(source, config, cache)
    assert contents(tmp_path / "other") == contents(tmp_path / "whole")


def test_a_directory_that_processes_do_not_share_is_named(source, config, tmp_path):
    with pytest.raises(DataError, match=r"shard 1 and 3 others are not there, .* all processes share"):
        make(source, config, tmp_path, process_index=0, process_count=2)


def test_another_network_size_crop_or_flip_is_another_set(whole, source, config, tmp_path, monkeypatch):
    before = digest(whole.directory)
    others = [
        make(source, config, tmp_path / "whole", ToyAutoencoder.of(change=0.1)),
        make(source, config, tmp_path / "whole", dataclasses.replace(TOY, name="other")),
        make(
            source,
            config,
            tmp_path / "whole",
            dataclasses.replace(TOY, weights=jax.tree.map(lambda a: a.astype(jnp.bfloat16), TOY.weights)),
        ),
        make(source, config, tmp_path / "whole", dataclasses.replace(TOY, deterministic=True)),
        make(source, dataclasses.replace(config, image_size=(16, 12)), tmp_path / "whole"),
        make(source, dataclasses.replace(config, flip=False), tmp_path / "whole"),
        make(open_source(dataclasses.replace(config, split="test")), config, tmp_path / "whole"),
    ]
    monkeypatch.setattr(encoded, "CROP", "another rule")
    others.append(make(source, config, tmp_path / "whole"))
    assert len({whole.directory, *(other.directory for other in others)}) == 9
    assert len({whole.fingerprint, *(other.fingerprint for other in others)}) == 9
    assert digest(whole.directory) == before
    assert others[0].read(3, False)["mean"].tolist() != whole.read(3, False)["mean"].tolist()


def test_an_index_of_another_set_is_refused(whole, source, config, tmp_path):
    index = json.loads((whole.directory / "index.json").read_text())
    (whole.directory / "index.json").write_text(json.dumps(index | {"fingerprint": "0" * 64}))
    with pytest.raises(DataError, match=r"index\.json: is of another set"):
        make(source, config, tmp_path / "whole")


def test_it_lies_beside_the_records_it_was_made_from(source, config):
    made = make(source, config, "encoded")
    assert made.directory.parent == Path(source.info.path) / "encoded"
    assert len(open_source(config)) == 64  # which are found and read as before
    shutil.rmtree(made.directory.parent)


def test_a_network_without_deviations(source, config, tmp_path):
    made = make(source, config, tmp_path, ToyAutoencoder.of(deterministic=True))
    assert made.batch([made.read(5, True)]).keys() == {"label", "mean"}
    means = np.stack([made.read(i, f)["mean"] for i in range(64) for f in (False, True)]).astype(np.float64)
    np.testing.assert_allclose(made.statistics.std, means.std((0, 1, 2)), rtol=1e-9)


# ---- interrupted


def test_a_killed_process_goes_on_and_encodes_no_shard_twice(data_dir, tmp_path, whole):
    """Here it goes on as two processes that know nothing of each other."""

    def start(name: str):
        return programs.start(tmp_path / name, __file__, data_dir, str(tmp_path / "killed"))

    process = start("first")
    deadline = time.monotonic() + 100
    while len(list((tmp_path / "killed").rglob("shard-*"))) < 3:
        assert process.is_alive(), (tmp_path / "first").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    done = {file: file.stat() for file in (tmp_path / "killed").rglob("shard-*")}
    assert 3 <= len(done) < 8
    for name, process in [(name, start(name)) for name in ("second", "third")]:
        process.join(100)
        assert process.exitcode == 0, (tmp_path / name).read_text()
    for file, before in done.items():
        assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert f"{8 * len(done)}/64" in (tmp_path / "second").read_text()  # where the bar goes on


@pytest.mark.parametrize("kept", [0, 100, 70_000, -1])
@pytest.mark.parametrize("finished", [True, False])
def test_a_truncated_shard_is_found_and_made_again(whole, source, config, tmp_path, kept, finished):
    before = contents(tmp_path / "whole")
    path = sorted(whole.directory.glob("shard-*"))[2]
    path.write_bytes(path.read_bytes()[:kept])
    if not finished:
        (whole.directory / "index.json").unlink()
    with mock.patch.object(encoded_files.logging, "warning") as warning:
        make(source, config, tmp_path / "whole")
    assert any(str(path) in map(str, call.args) for call in warning.call_args_list)
    assert contents(tmp_path / "whole") == before


def test_a_damaged_index_is_made_again(whole, source, config, tmp_path):
    before = contents(tmp_path / "whole")
    for damage in ("", "{", "[]", "{}"):
        (whole.directory / "index.json").write_text(damage)
        make(source, config, tmp_path / "whole")
        assert contents(tmp_path / "whole") == before


# ---- no room


def test_a_full_disk_is_named_and_what_was_encoded_is_kept(source, config, tmp_path, whole):
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.getuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(small)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small file system needs rights that this process has not")
    try:
        with pytest.raises(
            DataError, match=rf"{small}.*no room: the 64 pictures .* need 1\.\d MB, and 0\.7 MB are free"
        ):
            make(source, config, small)
        with (
            mock.patch.object(encoded_files.EncodedFiles, "room", return_value=0),
            pytest.raises(DataError, match=r"no room \(No space left on device\): the .* pictures .* make room"),
        ):
            make(source, config, small)
        kept = list(small.rglob("shard-*"))
        assert 2 <= len(kept) < 8
        assert not list(small.rglob(".shard*"))  # what could not be finished is not in the way
        inodes = {file: file.stat().st_ino for file in kept}
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        make(source, config, small)
        assert {file: file.stat().st_ino for file in kept} == inodes
        assert contents(small) == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_when_the_file_is_synced(source, config, tmp_path, number):
    with (
        mock.patch.object(encoded_files.os, "fsync", side_effect=OSError(number, os.strerror(number))),
        pytest.raises(DataError, match=rf"no room \({os.strerror(number)}\)"),
    ):
        make(source, config, tmp_path)


def test_a_directory_that_cannot_be_made_is_named(source, config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/.*cannot be made .*latent\.cache"):
        make(source, config, tmp_path / "file")


# ---- pictures and numbers that cannot be used


@pytest.fixture
def damaged(tmp_path, data_dir):
    """A set of 40 grey pictures of which two are truncated: its source and configuration."""
    files = {f"{i:02}.png": picture(5 * i)[: 48 if i in (7, 20) else None] for i in range(40)}
    folder = str(write(tmp_path / "pictures", files))
    config = DataConfig(name="folder", folder=folder, data_dir=data_dir, image_size=8, flip=True)
    return open_source(config), config


def test_unreadable_pictures_are_counted_and_replaced_as_those_of_pixels(damaged, tmp_path):
    source, config = damaged
    with mock.patch("zigma_jax.data.reads.logging.warning") as warning:
        made = make(source, config, tmp_path)
    assert [call.args[1] for call in warning.call_args_list] == [7, 20]
    assert made.unreadable == 2
    with pytest.raises(LookupError, match="OSError"):
        made.read(7, True)
    pixels, latents = (make_dataset(config, global_batch=10, encoded=e) for e in (None, made))
    for a, b in zip(itertools.islice(pixels, 8), itertools.islice(latents, 8), strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        mean, _ = TOY.encode(pictures(jax.tree.map(jnp.asarray, a)))
        np.testing.assert_allclose(b["mean"], mean, atol=2e-3)
    assert (latents.reads.seen, latents.reads.bad) == (pixels.reads.seen, pixels.reads.bad) == (80, 4)


def test_too_many_unreadable_pictures_stop_the_encoding(damaged, tmp_path):
    source, config = damaged
    with pytest.raises(BadDataError, match=r"max_bad_fraction=0.0 allows 0"):
        make(source, dataclasses.replace(config, max_bad_fraction=0.0), tmp_path)


@pytest.mark.parametrize(
    ("gain", "reason"), [(1e6, "reaches [0-9]+.*; float16 ends at 65504"), (float("nan"), "mean of it is NaN")]
)
def test_numbers_beyond_float16_are_named_and_not_kept(damaged, tmp_path, gain, reason):
    source, config = damaged
    with pytest.raises(BadDataError, match=f"The last was record .*{reason}"):
        make(source, config, tmp_path, dataclasses.replace(TOY, gain=gain))
    with pytest.raises(BadDataError, match="none of the 40 pictures"):
        make(source, dataclasses.replace(config, max_bad_fraction=1.0), tmp_path, dataclasses.replace(TOY, gain=gain))


def test_a_size_that_the_factor_does_not_divide_is_refused(source, config, tmp_path):
    with pytest.raises(ConfigError, match=r"config.data.image_size = \(16, 18\): must be a multiple of 4"):
        make(source, dataclasses.replace(config, image_size=(16, 18)), tmp_path)


# ---- batches


@pytest.fixture
def latents(whole, config):
    return lambda **options: make_dataset(config, global_batch=8, seed=1, encoded=whole, **options)


def test_batches_are_those_of_the_pixels(latents, config):
    pixels = make_dataset(config, global_batch=8, seed=1)
    for a, b in zip(itertools.islice(pixels, 20), itertools.islice(latents(), 20), strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        np.testing.assert_array_equal(a["label"], b["label"])
        np.testing.assert_allclose(
            b["mean"], TOY.encode(pictures(jax.tree.map(jnp.asarray, a)))[0], atol=1e-3
        )  # mirrored where the pixels are
        assert (b["mean"].dtype, b["std"].dtype) == (np.float16, np.float16)
    captions = latents().captions(b)
    assert captions == pixels.captions(a)


def test_batches_resume_to_the_bit_also_in_other_processes(latents):
    expected = list(itertools.islice(latents(), 12))
    iterator = iter(latents())
    for _ in range(5):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = iter(latents())
    resumed.set_state(state)
    elsewhere = pickle.loads(pickle.dumps(latents()))  # as workers get it
    for step, batch in enumerate(expected[5:], 5):
        found = next(resumed)
        parts = [latents(process_index=p, process_count=2).batch(step) for p in range(2)]
        for name in batch:
            np.testing.assert_array_equal(batch[name], found[name])
            np.testing.assert_array_equal(batch[name], elsewhere.batch(step)[name])
            np.testing.assert_array_equal(batch[name], np.concatenate([part[name] for part in parts]))


def test_the_state_of_another_set_is_refused(latents, config):
    pixels = make_dataset(config, global_batch=8, seed=1)
    for one, other in ((latents(), pixels), (pixels, latents())):
        with pytest.raises(DataError, match=r"encoded=.*would not be the same"):
            iter(one).set_state(iter(other).get_state())


def test_a_flipped_bit_is_noticed_and_replaced(whole, latents):
    path = sorted(whole.directory.glob("shard-*"))[1]
    content = bytearray(path.read_bytes())
    at = content.index(whole.read(11, False)["mean"].tobytes())
    content[at + 3] ^= 1
    path.write_bytes(content)
    dataset = latents()
    seen = np.concatenate([batch["index"] for batch in itertools.islice(dataset, 24)])
    assert dataset.reads.bad > 0
    assert np.sum(seen == 11) < 3


if __name__ == "__main__":  # what the tests above start, kill and start again
    import sys

    latent_sets._SHARD_SIZES, encoded._MOST_AT_ONCE = (8, 8), 2
    slow_read = encoded._read
    encoded._read = lambda *arguments: (time.sleep(0.02), slow_read(*arguments))[1]
    main = DataConfig(name="avatars/tiny", data_dir=sys.argv[1], image_size=16, flip=True)
    encoded_set(open_source(main), main, TOY, cache=sys.argv[2])


def test_windows_of_clips_are_encoded_frame_by_frame(tmp_path):
    config = DataConfig(
        name="avatars_moving/tiny", data_dir=str(tmp_path), image_size=8, frames=3, stride=2, flip=True, split="test"
    )
    source, autoencoder = open_source(config), ToyAutoencoder.of()
    encoded = encoded_set(source, config, autoencoder, windows=2)
    assert (encoded.shape, encoded.mirrored, len(encoded)) == ((3, 2, 2, 3), True, 8)
    assert config.window is not None
    for window, where in ((0, 0.25), (1, 0.75)):
        for flip in (False, True):
            pixels = read_clip(source.clip(source[5]), config.window, where, (8, 8))
            mean, _ = autoencoder.encode(to_float(pixels[:, :, ::-1] if flip else pixels))
            row = encoded.read(5, flip, window << 63)
            np.testing.assert_allclose(row["mean"], np.asarray(mean), atol=2e-3)
            assert row["label"] == source.label(source[5])
    dataset = make_dataset(config, global_batch=8, encoded=encoded)
    assert dataset.batch(0)["mean"].shape == (8, 3, 2, 2, 3)
    assert any(not np.array_equal(dataset.batch(0)["mean"], dataset.batch(step)["mean"]) for step in (1, 2))
    other = describe(source, config, autoencoder, windows=3)
    assert other.fingerprint != describe(source, config, autoencoder, windows=2).fingerprint
    longer = dataclasses.replace(config, stride=1)
    assert describe(source, longer, autoencoder, windows=2).directory != encoded.directory

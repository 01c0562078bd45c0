"""Prepares a data set ahead of a run: `python -m zigma_jax.prepare --name=avatars [--data_dir=DIR]`.

Prints where it lies, how much there is and under which licence, and writes a sheet of its first pictures.
`python -m zigma_jax.prepare --config=FILE [--config.x.y=…]` prepares everything that a run of this configuration reads:
the data set, its pictures' latents if the run trains on latents (docs/latents.md), and its captions' tokens if it
trains on text (docs/data.md).
"""

from typing import Any

import numpy as np
from absl import app, flags

from zigma_jax.data import sources
from zigma_jax.data.clips.decode import read_clip
from zigma_jax.data.clips.window import Window
from zigma_jax.data.config import DataConfig
from zigma_jax.data.encoded_text import TextSet
from zigma_jax.data.pictures.decode import decode
from zigma_jax.data.pictures.pixels import center_crop, to_float
from zigma_jax.errors import ConfigError, DataError, MissingPackageError
from zigma_jax.files import AnyPath, as_path
from zigma_jax.processes import from_primary
from zigma_jax.programs import (
    DEFINE_config,
    DEFINE_processes,
    exit_with_errors,
    load_config,
    parse_flags,
    set_cpu_devices,
)
from zigma_jax.training.conditions import open_conditions, open_encoder
from zigma_jax.training.config import RunConfig
from zigma_jax.training.parse_config import to_dict
from zigma_jax.training.preview import make_grid, save_png
from zigma_jax.training.samples import open_samples

_CONFIG = DEFINE_config()
_NAME = flags.DEFINE_string("name", "avatars", "As data.name of a configuration: docs/data.md.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where data sets lie; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."
)
_FOLDER = flags.DEFINE_string("folder", None, "The directory for --name=folder, parquet, celeba or coco.")
_SHARDS = flags.DEFINE_string("shards", None, "The tars, for --name=webdataset: a directory, glob or range.")
_FRAMES = flags.DEFINE_integer("frames", 0, "For clips in --folder: frames of a window, as data.frames.", lower_bound=0)
_PREVIEW = flags.DEFINE_string("preview", "preview.png", "The file for the sheet of pictures; empty for none.")
_PIXELS = flags.DEFINE_integer("preview_pixels", 64, "Pixels a side of each picture in the sheet.", lower_bound=1)
_JOIN = DEFINE_processes()


def main(argv: list[str]) -> None:
    with exit_with_errors(argv):
        if _CONFIG.value is None:
            _JOIN()
            place: dict[str, Any] = {"data_dir": _DATA_DIR.value, "folder": _FOLDER.value, "shards": _SHARDS.value}
            data = DataConfig(name=_NAME.value, frames=_FRAMES.value, **place)
            from_primary(lambda: describe(data))
            return
        for name in ("name", "data_dir", "folder", "shards"):
            if not flags.FLAGS[name].using_default_value:
                raise ConfigError(f"--{name} is given beside --config: say --config.data.{name} instead")
        config = load_config(_CONFIG.value)
        set_cpu_devices(config.train.cpu_devices)
        _JOIN(config=to_dict(config))
        from_primary(lambda: describe(config.data))
        records = sources.open_source(config.data)
        encoder = open_encoder(config, records)
        if config.latent.autoencoder:
            encode(config, records)
        if config.text.encoder:
            encode_captions(config, records, encoder)


def encode(config: RunConfig, records: sources.Source) -> None:
    """Makes the encoded set of a run, unless it is there."""
    found, _ = open_samples(config, records)
    if found.encoded is None:
        print("latents: none to prepare, the training step encodes (latent.cache='step')")
        return
    size = sum(file.stat().st_size for file in found.encoded.directory.iterdir())
    shape = " × ".join(map(str, found.encoded.shape))
    statistics = found.encoded.statistics
    print(f"latents of {found.autoencoder.name} in {found.encoded.directory}")
    print(
        f"  {len(found.encoded):,} of {shape}{', and of mirror images' * found.encoded.mirrored}: {size / 1e6:,.1f} MB"
    )
    print(f"  unreadable pictures: {found.encoded.unreadable}")
    print(f"  mean of each channel: {', '.join(f'{value:.4g}' for value in statistics.mean)}")
    print(f"  deviation of each channel: {', '.join(f'{value:.4g}' for value in statistics.std)}")


def encode_captions(config: RunConfig, records: sources.Source, encoder: Any) -> None:
    """Makes the encoded captions of a run, unless they are there."""
    texts = open_conditions(config, records, encoder)[0].texts
    if not isinstance(texts, TextSet):
        print("captions: none to prepare, the training step encodes (text.cache='step')")
        return
    print(f"captions of {texts.encoder['name']} in {texts.directory}")
    print(
        f"  {texts.captions:,} of {texts.tokens / texts.captions:.1f} tokens, {texts.length} at most: "
        f"{texts.bytes_per_caption:,.0f} bytes each, {texts.captions * texts.bytes_per_caption / 1e6:,.1f} MB"
    )
    print(f"  pictures without captions: {texts.without}, with unreadable ones: {texts.unreadable}")
    print(f"  empty captions: {texts.empty}, cut: {texts.truncated}")


def describe(data: DataConfig) -> None:
    """Prepares a data set, unless it is there, and prints what is in it."""
    splits = sources.open_splits(data)
    first = splits[0]
    print(f"{first.info.name} in {first.info.path}")
    for source in splits:
        print(f"  {source.info.split}: {len(source):,} {'clips' if source.info.has_clips else 'pictures'}")
    captions = "captions" if first.info.has_captions else "no captions"
    print(f"  classes: {first.info.num_classes or 'none'}, {captions}")
    print(f"  licence: {first.info.licence}")
    if first.info.has_clips and _PREVIEW.value:
        write_clips(first, as_path(_PREVIEW.value), _PIXELS.value, data.window or Window(8))
        print(f"  frames of the first clips: {_PREVIEW.value}")
    elif not first.info.has_pictures:
        print("  latents alone, no pictures")
    elif _PREVIEW.value:
        write_preview(first, as_path(_PREVIEW.value), _PIXELS.value)
        print(f"  the first pictures: {_PREVIEW.value}")


def write_clips(source: sources.Source, path: AnyPath, pixels: int, window: Window, count: int = 16) -> None:
    """Writes a sheet of the first readable clips: a row of frames for each."""
    clips = []
    for index in range(min(count, len(source))):
        try:
            clips.append(read_clip(source.clip(source[index]), window, 0.0, (pixels, pixels)))
        except MissingPackageError:
            raise
        except Exception as error:
            print(f"  record {index} is unreadable: {type(error).__name__}: {error}")
    if not clips:
        raise DataError(f"none of the first {count} records of {source.info.name} can be read")
    save_png(path, make_grid(np.stack(clips)))


def write_preview(source: sources.Source, path: AnyPath, pixels: int, count: int = 64) -> None:
    """Writes a sheet of the first readable pictures, eight or sixteen a row."""
    pictures = []
    for index in range(min(count, len(source))):
        try:
            image = decode(source.picture(source[index]))
        except Exception as error:
            print(f"  record {index} is unreadable: {type(error).__name__}: {error}")
            continue
        pictures.append(center_crop(image, (pixels, pixels)))
    if not pictures:
        raise DataError(f"none of the first {count} records of {source.info.name} can be read")
    save_png(path, make_grid(to_float(np.stack(pictures)), columns=16 if len(pictures) > 32 else 8))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

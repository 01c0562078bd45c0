"""Prepares a data set ahead of a run: `python -m zigma_jax.prepare --name=avatars [--data_dir=DIR]`.

Prints where it lies, how much there is and under which licence, and writes a sheet of its first pictures.
"""

from pathlib import Path

import numpy as np
from absl import app, flags

from zigma_jax.data import images, sources
from zigma_jax.training.preview import make_grid, save_png

_NAME = flags.DEFINE_string("name", "avatars", "avatars, emoji, folder, or an image set of TFDS (celeb_a, …).")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where data sets lie; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."
)
_FOLDER = flags.DEFINE_string("folder", None, "The directory of pictures, for --name=folder.")
_PREVIEW = flags.DEFINE_string("preview", "preview.png", "The file for the sheet of pictures; empty for none.")
_PIXELS = flags.DEFINE_integer("preview_pixels", 64, "Pixels a side of each picture in the sheet.", lower_bound=1)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        builder = sources.prepare(_NAME.value, _DATA_DIR.value, _FOLDER.value)
    except (ValueError, RuntimeError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    splits = [sources.Source(builder, split) for split in builder.info.splits]
    first = splits[0]
    print(f"{first.info.name} in {first.info.path}")
    for source in splits:
        print(f"  {source.info.split}: {len(source):,} pictures")
    captions = "captions" if first.info.has_captions else "no captions"
    print(f"  classes: {first.info.num_classes or 'none'}, {captions}")
    print(f"  licence: {first.info.licence}")
    if _PREVIEW.value:
        write_preview(first, Path(_PREVIEW.value), _PIXELS.value)
        print(f"  the first pictures: {_PREVIEW.value}")


def write_preview(source: sources.Source, path: Path, pixels: int, count: int = 64) -> None:
    """Writes a sheet of the first readable pictures, eight or sixteen a row."""
    pictures = []
    for index in range(min(count, len(source))):
        try:
            image = images.decode(source.picture(source[index]))
        except Exception as error:
            print(f"  record {index} is unreadable: {type(error).__name__}: {error}")
            continue
        pictures.append(images.center_crop(image, (pixels, pixels)))
    if not pictures:
        raise SystemExit(f"error: none of the first {count} records of {source.info.name} can be read")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, make_grid(images.to_float(np.stack(pictures)), columns=16 if len(pictures) > 32 else 8))


if __name__ == "__main__":
    app.run(main)

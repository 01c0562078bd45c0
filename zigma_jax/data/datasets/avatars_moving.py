"""The `avatars_moving` dataset: cartoon faces that blink, talk, turn colour or slide, painted on the spot."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from zigma_jax.data.datasets import avatar_art, avatar_motion
from zigma_jax.data.datasets.avatars import LICENCE


@dataclasses.dataclass(eq=False)
class AvatarsMovingConfig(tfds.core.BuilderConfig):
    """`size` pixels a side, and how many clips each split has."""

    size: int = 64
    train: int = 4_000
    test: int = 1_000


class AvatarsMoving(tfds.core.GeneratorBasedBuilder):
    """4,000 clips of cartoon faces and 1,000 held out, 16 frames each; the motion is the class."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - the name TFDS reads
        AvatarsMovingConfig(name="64", description="64 x 64 pixels"),
        AvatarsMovingConfig(name="tiny", description="a few clips, for tests", size=32, train=24, test=8),
    ]
    builder_config: AvatarsMovingConfig

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {key: tfds.features.ClassLabel(names=list(of)) for key, of in avatar_art.ATTRIBUTES.items()}
        size = self.builder_config.size
        frame = tfds.features.Image(shape=(size, size, 3), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Cartoon faces with random attributes that move, and captions that say so.",
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Sequence(frame),
                    "label": tfds.features.ClassLabel(names=list(avatar_motion.MOTIONS)),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "attributes": tfds.features.FeaturesDict(labels),
                }
            ),
            homepage="https://github.com/ibonn/python_avatars",
            license=LICENCE,
            disable_shuffling=True,  # record i is clip i
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        config = self.builder_config
        return {split: self._generate_examples(split, getattr(config, split)) for split in ("train", "test")}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in tqdm(range(count), f"avatars_moving: {split}", unit="clip"):
            drawn, motion, end = avatar_motion.draw_clip(split, index)
            yield (
                index,
                {
                    "video": avatar_motion.clip(split, index, self.builder_config.size),
                    "label": motion,
                    "captions": avatar_motion.captions(drawn, motion, end),
                    "attributes": drawn,
                },
            )

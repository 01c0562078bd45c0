"""What a run says about its data; reading it needs none of the libraries that read the data."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from zigma_jax.data.clips.window import Short, Window
from zigma_jax.errors import ConfigError

FROM_FOLDER = {
    "folder": "the directory of pictures or clips",
    "parquet": "the directory of parquet files",
    "celeba": "the directory with img_align_celeba.zip and list_eval_partition.txt",
    "coco": "the directory with train2014.zip, val2014.zip and annotations_trainval2014.zip",
} | dict.fromkeys(
    ("ucf101", "ucf101/2", "ucf101/3"), "the directory with UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip"
)
"""The sets that are made from `data.folder`, and what that is."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """data.*: the pictures.

    Attributes:
        name: avatars, emoji (or avatars/256, …), avatars_moving, folder, parquet, celeba, coco, ucf101, webdataset,
            hf://datasets/OWNER/NAME, or a set of TFDS's catalogue.
        data_dir: where prepared sets lie; None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        split: a split of the set, or part of one as TFDS writes it: "train[:90%]".
        image_size: pixels (height, width), or one number for a square.
        flip: mirror every other picture, drawn anew each time that it is seen.
        workers: processes that make batches; 0: one thread of this process.
        max_bad_fraction: the run stops when more of the samples than this were unreadable (of at least 1000).
        folder: the directory of pictures or clips (name="folder"), of parquet files ("parquet"), or of the files
            of CelebA ("celeba"), COCO ("coco") or UCF101 ("ucf101").
        shards: the tars of name="webdataset": a directory, a glob, a range ("train-{000..124}.tar"), or several of
            these with commas between them.
        image_column, label_column, caption_column: the column, feature or member that holds the pictures, the classes
            or the captions; None: found by its kind and name.
        frames: of a clip; 0: the samples are pictures. Each time that a clip is seen, another window of it is drawn.
        stride: frames of the clip from one frame of the window to the next.
        fps: frames a second of the window, in place of `stride`: at each time what the clip shows then.
        short: clips shorter than a window start again from their beginning ("loop"), or count as unreadable ("refuse").
    """

    name: str = "avatars"
    data_dir: str | None = None
    split: str = "train"
    image_size: int | tuple[int, int] = 32
    flip: bool = False
    workers: int = 0
    max_bad_fraction: float = 0.01
    folder: str | None = None
    shards: str | tuple[str, ...] | None = None
    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    frames: int = 0
    stride: int = 1
    fps: float | None = None
    short: Short = "loop"

    def __post_init__(self):
        if isinstance(self.image_size, Sequence) and len(self.image_size) != 2:
            raise ConfigError(f"data.image_size={self.image_size}: must be one number or two, (height, width)")
        for pixels in self.size:
            if pixels < 1:
                raise ConfigError(f"data.image_size={self.image_size}: must be positive")
        if self.workers < 0:
            raise ConfigError(f"data.workers={self.workers}: must be 0 or more")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"data.max_bad_fraction={self.max_bad_fraction}: must lie in [0, 1]")
        if self.frames < 0:
            raise ConfigError(f"data.frames={self.frames}: must not be negative; 0 is for pictures")
        if self.stride < 1:
            raise ConfigError(f"data.stride={self.stride}: must be at least 1")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError(f"data.fps={self.fps}: must be positive, and at most 1000")
        if self.fps is not None and self.stride != 1:
            raise ConfigError(f"data.fps={self.fps} and data.stride={self.stride}: give one of them")
        for name, default in (("stride", 1), ("fps", None)):
            if not self.frames and getattr(self, name) != default:
                raise ConfigError(f"data.{name}={getattr(self, name)}: is for clips, which data.frames asks for")

    def check_place(self) -> None:
        """Raises ConfigError if it isn't said where a set's files are, or said of a set that has none."""
        if self.folder is not None and self.name not in FROM_FOLDER:
            raise ConfigError(
                f"data.folder={self.folder!r} is set, but data.name={self.name!r}, none of {', '.join(FROM_FOLDER)}"
            )
        if self.shards is not None and self.name != "webdataset":
            raise ConfigError(f"data.shards={self.shards!r} is set, but data.name={self.name!r} is not 'webdataset'")
        if self.name in FROM_FOLDER and self.folder is None:
            raise ConfigError(f"data.name={self.name!r} needs data.folder, {FROM_FOLDER[self.name]}")
        if self.name == "webdataset" and self.shards is None:
            raise ConfigError(
                "data.name='webdataset' needs data.shards: a directory of tars, a glob, or a range in braces"
            )

    @property
    def window(self) -> Window | None:
        """Which frames of a clip are taken; None of pictures."""
        return Window(self.frames, self.stride, self.fps, self.short) if self.frames else None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)


@dataclasses.dataclass(frozen=True)
class LatentConfig:
    """latent.*: how pictures become the samples that the model is trained on; docs/latents.md.

    Attributes:
        autoencoder: empty: the samples are pixels. Otherwise an autoencoder: a directory in Hugging Face layout, a
            file, hf://owner/repo, or KIND:PLACE ("taef2:DIR"), as `zigma_jax.networks.load_autoencoder` takes it.
        weights: where the weights lie, if `autoencoder` is the kind alone ("kl", "taesd", "taef2", …).
        cache: "encoded": every picture is encoded once, into a set of its own beside the data set; a directory: the
            same, there; "step": pictures are encoded in the training step, and nothing is kept; "stored": the latents
            in webdataset's tars, copied once into such a set ("stored:DIRECTORY": there), and nothing is encoded.
        windows: of a clip, so many windows are encoded, spread evenly over it, and each time one of them is drawn.
        scale, shift: samples are (z − shift) · scale, one number or one a channel; None: as `statistics` says. A run
            writes down the numbers that it used.
        statistics: where scale and shift come from if they are not given: "config", the network's config.json; or
            "measured": each channel of the encoded set becomes zero on average with a standard deviation of one.
        dtype: the autoencoder computes in "float32" or "bfloat16".
        fingerprint: SHA-256 of the autoencoder's weights. A run writes it down, and its samples are decoded with no
            other weights; if it is given, no others are trained with either.
    """

    autoencoder: str = ""
    weights: str | None = None
    cache: str = "encoded"
    windows: int = 4
    scale: float | tuple[float, ...] | None = None
    shift: float | tuple[float, ...] | None = None
    statistics: Literal["config", "measured"] = "config"
    dtype: Literal["float32", "bfloat16"] = "float32"
    fingerprint: str = ""

    def __post_init__(self):
        if self.weights and not self.autoencoder:
            raise ConfigError(
                f"config.latent.weights = {self.weights!r}: needs latent.autoencoder, the kind of network"
            )
        if not self.cache:
            raise ConfigError("config.latent.cache = '': must be 'encoded', 'step', 'stored' or a directory")
        if not 1 <= self.windows <= 1000:
            raise ConfigError(f"config.latent.windows = {self.windows}: must be in 1 … 1000")
        if self.statistics == "measured" and self.cache == "step" and None in (self.scale, self.shift):
            raise ConfigError(
                "config.latent.statistics = 'measured': are taken from the encoded set, which latent.cache = 'step' "
                "does without; give latent.scale and latent.shift, or latent.cache = 'encoded'"
            )


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """text.*: how captions become the tokens that the model is conditioned on; docs/text.md.

    Attributes:
        encoder: empty: no text. Otherwise a text encoder: "minilm", the packaged one; a directory in Hugging Face
            layout, or hf://owner/repo, as `zigma_jax.networks.load_text_encoder` takes it.
        weights: where the weights lie, if `encoder` is the kind alone ("clip", "bert").
        cache: "encoded": every caption is encoded once, into a set of its own beside the data set; a directory: the
            same, there; "step": captions are encoded in the training step, and nothing is kept.
        fingerprint: SHA-256 of the encoder's weights. A run writes it down, and its prompts are encoded with no other
            weights; if it is given, no others are trained with either.
    """

    encoder: str = ""
    weights: str | None = None
    cache: str = "encoded"
    fingerprint: str = ""

    def __post_init__(self):
        if self.weights and not self.encoder:
            raise ConfigError(f"config.text.weights = {self.weights!r}: needs text.encoder, the kind of network")
        if not self.cache:
            raise ConfigError("config.text.cache = '': must be 'encoded', 'step' or a directory")

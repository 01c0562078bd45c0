"""What every data set is to the rest of the project: records by index, and what is known of them beforehand."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

from zigma_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class SourceInfo:
    """What is known of a split without reading it."""

    name: str
    """The set's full name: of a prepared set, TFDS's name, config and version."""
    split: str
    length: int
    num_classes: int
    """0 if the set has no classes."""
    class_names: tuple[str, ...]
    has_captions: bool
    licence: str
    path: str
    """The directory of the records, where what is computed from them may be kept too."""
    fingerprint: str
    """Tells one set of records from another, wherever they lie: hexadecimal, of names, lengths and sizes."""
    has_pictures: bool = True
    """False of a set that came as latents alone, and of clips."""
    has_clips: bool = False
    """Whether records are clips, which `clip` returns in place of `picture`."""


@runtime_checkable
class Source(Protocol):
    """The records of one split by index. Safe to read from several threads, and to send to another process.

    Damage shows as an exception of `__getitem__` or of decoding the picture, and is counted by whoever reads.
    """

    info: SourceInfo

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """The record, as the other methods take it."""
        ...

    def picture(self, record: Any) -> bytes:
        """The encoded picture of a record."""
        ...

    def clip(self, record: Any) -> Any:
        """The clip of a record, as `clips.decode.read_clip` takes it; only for sets of clips."""
        ...

    def label(self, record: Any) -> int:
        """The class of a record; only for sets with classes. Raises DataError if it is out of range."""
        ...

    def captions(self, index: int) -> list[str]:
        """All captions of record `index`. Raises DataError if the set has none."""
        ...


def check_kind(info: SourceInfo, frames: int) -> None:
    """Raises ConfigError for clips that are asked for of a set of pictures, and for pictures of one of clips."""
    if frames and not info.has_clips:
        raise ConfigError(f"data.frames={frames}: {info.name} has no clips; 0 is for pictures")
    if info.has_clips and not frames:
        raise ConfigError(f"data.frames=0: {info.name} has clips; give the frames of a window, as data.frames=16")

"""What a run says about its data; reading it needs none of the libraries that read the data."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The `data.*` fields of a run."""

    name: str = "avatars"
    """avatars, emoji (or avatars/256, …), folder, or a set of TFDS's catalogue."""
    data_dir: str | None = None
    """Where prepared sets lie; None: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    split: str = "train"
    """A split of the set, or part of one as TFDS writes it: "train[:90%]"."""
    image_size: int | tuple[int, int] = 32
    """Pixels (h, w), or one number for a square."""
    flip: bool = False
    """Mirror every other picture, drawn anew each time that it is seen."""
    workers: int = 0
    """Processes that make batches; 0: one thread of this process."""
    max_bad_fraction: float = 0.01
    """The run stops when more of the samples than this were unreadable (of at least 1000)."""
    folder: str | None = None
    """The directory of pictures, for name="folder"."""

    def __post_init__(self):
        if isinstance(self.image_size, Sequence) and len(self.image_size) != 2:
            raise ValueError(f"data.image_size={self.image_size}: must be one number or two, (height, width)")
        for pixels in self.size:
            if pixels < 1:
                raise ValueError(f"data.image_size={self.image_size}: must be positive")
        if self.workers < 0:
            raise ValueError(f"data.workers={self.workers}: must be 0 or more")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction={self.max_bad_fraction}: must lie in [0, 1]")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

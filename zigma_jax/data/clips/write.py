"""Videos as files that play in a browser."""

import fractions
import importlib.util
import io

import numpy as np
from jaxtyping import UInt8

from zigma_jax.data.clips.decode import import_av

_QUALITY = "16"  # of x264: 0 is lossless, 23 its default; small frames show what it does to them


def can_write_movies() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def movie(frames: UInt8[np.ndarray, "f h w 3"], frames_per_second: float) -> bytes:
    """An .mp4 of H.264 in 4:2:0, which every browser plays; the same bytes for the same frames.

    4:2:0 needs an even height and width: of an odd one the last row or column is there twice.

    Raises MissingPackageError without PyAV.
    """
    av = import_av()
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    rate = fractions.Fraction(frames_per_second).limit_denominator(1001)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": _QUALITY, "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()

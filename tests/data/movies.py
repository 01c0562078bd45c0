"""Movies for tests: frames that say in their brightness which number they have."""

import fractions
import io
import struct
from typing import Any

import av
import numpy as np

STEP = 6  # levels from frame to frame: what compression does to them is less than half of it


def numbered(count: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Frames whose lower half says their number; the upper left quarter is white, the upper right black."""
    frames = np.zeros((count, *size, 3), np.uint8)
    frames[:, : size[0] // 2, : size[1] // 2] = 255
    frames[:, size[0] // 2 :] = (np.arange(count, dtype=np.uint8) * STEP)[:, None, None, None]
    return frames


def numbers(clip: np.ndarray) -> list[int]:
    """Which frames they are."""
    h, w = clip.shape[1:3]
    return [round(float(frame[3 * h // 4 :, w // 4 : 3 * w // 4].mean()) / STEP) for frame in clip]


def encode(
    frames: np.ndarray,
    codec: str = "libx264",
    container: str = "mp4",
    pix_fmt: str = "yuv420p",
    rate: int = 10,
    times: list[int] | None = None,
    **options: int,
) -> bytes:
    """A movie; `times` in milliseconds make its rate vary, `options` are the codec context's."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate, options={"crf": "12"} if codec.startswith("libx264") else {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        if times:
            stream.codec_context.time_base = stream.time_base = fractions.Fraction(1, 1000)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times:
                picture.pts, picture.time_base = times[number], fractions.Fraction(1, 1000)
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    return file.getvalue()


def sound() -> bytes:
    """A second of silence, and no picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream: Any = out.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


def turned(movie: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The movie with another matrix (a, b, c, d) in its track's header, as phones write it."""
    place = movie.index(b"tkhd") + 4 + 4 + 4 * 5 + 8 + 8
    a, b, c, d = (number << 16 for number in matrix)
    return movie[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + movie[place + 36 :]

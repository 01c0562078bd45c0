"""From a clip, whatever it is kept in, to the frames of a window: upright RGB, cropped and resized.

Movies (.mp4, .webm, .avi, …) are read by PyAV: their packets are listed, and from the last key frame before the window
on they are decoded. Animated pictures (.gif, .webp, .png) are read by Pillow, which is at home there, and directories
of frames as single pictures.
"""

import contextlib
import io
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image

from zigma_jax.data.clips.window import Window
from zigma_jax.data.pictures.decode import decode, describe
from zigma_jax.data.pictures.files import is_picture, list_visible
from zigma_jax.data.pictures.pixels import center_crop
from zigma_jax.errors import DataError, MissingPackageError

Clip = bytes | Path | Sequence[bytes]
"""A clip's file as bytes; the path of a file, or of a directory of frames; or its frames, each of them encoded."""

_ANIMATED = re.compile(rb"GIF8[79]a|RIFF....WEBP|\x89PNG\r\n\x1a\n", re.DOTALL)
# Containers of video alone. FFmpeg knows more, among them playlists, which make it open other files and addresses.
_FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,ogg,asf,m4v,h264,hevc,av1,ivf,mjpeg,dv,yuv4mpegpipe"
_UPRIGHT = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
_NAMED = 10  # clips that are too short, named in the log


def read_clip(clip: Clip, window: Window, where: float, size: tuple[int, int]) -> UInt8[np.ndarray, "f h w 3"]:
    """The frames of a window, all cropped and resized alike as `center_crop` does it to `size` = (height, width).

    where: the place of the window, see `Window.choose`.

    Raises:
        DataError: no clip (and what it is instead), sound alone, too short if the window refuses that.
        MissingPackageError: a movie, and PyAV is not installed.
        Exception: what PyAV and Pillow raise for damaged files.
    """
    with _naming(clip), contextlib.ExitStack() as stack:
        times, end, frames = _open(stack, clip, window)
        numbers = window.choose(times, end, where)
        if not window.fits(times, end):
            what = clip if isinstance(clip, Path) else "a record"
            logging.log_first_n(
                logging.WARNING, "A clip is shorter than a window, which takes %s, and is looped: %s", _NAMED,
                window.needs, what,
            )  # fmt: skip
        pixels = {number: center_crop(frame, size) for number, frame in frames(sorted(set(numbers.tolist())))}
        return np.stack([pixels[number] for number in numbers.tolist()])


Frames = Callable[[list[int]], Iterator[tuple[int, Image.Image]]]
"""Decodes frames, given by their ascending numbers."""
Opened = tuple[np.ndarray, float, Frames]
"""When each frame is shown, in seconds; when the last one ends; and what decodes them."""


@contextlib.contextmanager
def _naming(clip: Clip) -> Iterator[None]:
    """A file's name in front of what is wrong with it; records are named by whoever reads them."""
    try:
        yield
    except MissingPackageError:
        raise
    except Exception as error:
        if not isinstance(clip, Path):
            raise
        reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        raise DataError(f"{clip}: {reason}") from error


def _open(stack: contextlib.ExitStack, clip: Clip, window: Window) -> Opened:
    if isinstance(clip, Path) and clip.is_dir():
        return _open_frames([path.read_bytes for path in frame_files(clip)], window)
    if not isinstance(clip, bytes | Path):
        return _open_frames([lambda frame=frame: frame for frame in clip], window)
    file = stack.enter_context(clip.open("rb") if isinstance(clip, Path) else io.BytesIO(clip))
    head = file.read(16)
    file.seek(0)
    if _ANIMATED.match(head):
        return _open_animation(stack, file, timed=window.fps is not None)
    return _open_movie(stack, file)


# ---- movies


def import_av() -> Any:
    """PyAV. Raises MissingPackageError if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise MissingPackageError(f"movies need PyAV: pip install 'zigma_jax[video]' ({error})") from None
    return av


def _open_movie(stack: contextlib.ExitStack, file: io.BufferedIOBase) -> Opened:
    container, stream = _open_stream(stack, file)
    stamps, last = _list_packets(container, stream)
    base = float(stream.time_base)
    times = stamps * base
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    end = float(times[-1]) + (last * base or usual) if len(times) else 0.0

    def frames(numbers: list[int]) -> Iterator[tuple[int, Image.Image]]:
        aspect = stream.codec_context.sample_aspect_ratio
        if numbers[0]:
            container.seek(int(stamps[numbers[0]]), stream=stream)
            numbers = yield from _take(container.decode(stream), stamps, numbers, aspect, from_start=False)
        if numbers:  # there is nothing to seek, or this container's index leads elsewhere
            again, first = _open_stream(stack, file)
            numbers = yield from _take(again.decode(first), stamps, numbers, aspect, from_start=True)
        if numbers:
            raise DataError(f"frame {numbers[0]} of {len(stamps)} cannot be decoded")

    return times, end, frames


def _open_stream(stack: contextlib.ExitStack, file: io.BufferedIOBase) -> tuple[Any, Any]:
    """The file from its beginning, and the stream of pictures in it."""
    av = import_av()
    file.seek(0)
    if not (head := file.read(1024)):
        raise DataError("no movie, but an empty file")
    file.seek(0)
    try:
        container = stack.enter_context(av.open(file, options={"format_whitelist": _FORMATS}))
    except (av.error.InvalidDataError, av.error.EOFError, av.error.ArgumentError) as error:
        raise DataError(f"no movie that can be read, but {describe(head)} ({error.strerror or error})") from None
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & cover]
    if not streams:
        only_sound = container.streams.audio and not container.streams.video
        raise DataError(f"there are no frames in it, but {'sound alone' if only_sound else 'damage'}")
    stream = max(streams, key=lambda stream: stream.codec_context.width * stream.codec_context.height)
    stream.codec_context.thread_count = 1  # the workers are as many as there are cores
    return container, stream


def _list_packets(container: Any, stream: Any) -> tuple[np.ndarray, int]:
    """The times of all frames in order, in the stream's unit, and how long the last one is; nothing is decoded."""
    stamps: dict[int, int] = {}
    for packet in container.demux(stream):
        stamp = packet.dts if packet.pts is None else packet.pts
        if packet.size and stamp is not None and not packet.is_discard and not packet.is_corrupt:
            stamps[stamp] = packet.duration or 0
    ordered = np.array(sorted(stamps), np.int64)
    return ordered, stamps[int(ordered[-1])] if len(ordered) else 0


def _take(
    decoded: Iterator[Any], stamps: np.ndarray, numbers: list[int], aspect: Any, from_start: bool
) -> Generator[tuple[int, Image.Image], None, list[int]]:
    """The frames of these numbers among those that are decoded; returns the numbers of those that did not come."""
    waiting = list(numbers)
    for count, frame in enumerate(decoded):
        stamp = frame.dts if frame.pts is None else frame.pts
        if stamp is None and not from_start:
            break
        number = count if stamp is None else int(np.searchsorted(stamps, stamp, side="right")) - 1
        if number == waiting[0]:
            yield waiting.pop(0), _upright(frame, aspect)
        if not waiting or number > waiting[0]:
            break
    return waiting


def _upright(frame: Any, aspect: Any) -> Image.Image:
    """RGB as it is to be seen: phones store the turn beside the pixels, and a pixel's `aspect` may not be square."""
    image = frame.to_image()
    if aspect and aspect != 1 and 0.1 < aspect < 10:
        image = image.resize((max(1, round(image.width * aspect)), image.height), Image.Resampling.BICUBIC)
    turn = _UPRIGHT.get(frame.rotation % 360)
    return image if turn is None else image.transpose(turn)


# ---- animated pictures


def _open_animation(stack: contextlib.ExitStack, file: io.BufferedIOBase, timed: bool) -> Opened:
    """timed: whether the times are asked for, because finding them takes decoding all frames."""
    image = stack.enter_context(Image.open(cast(IO[bytes], file), formats=["GIF", "WEBP", "PNG"]))
    count = getattr(image, "n_frames", 1)
    durations = []
    for number in range(count if timed else 0):
        image.seek(number)
        image.load()  # of a WebP Pillow knows only then how long it is shown
        durations.append((image.info.get("duration") or 100) / 1000)  # browsers show 0 as a tenth of a second
    ends = np.cumsum(durations) if timed else np.arange(1.0, count + 1)

    def frames(numbers: list[int]) -> Iterator[tuple[int, Image.Image]]:
        for number in numbers:
            image.seek(number)
            frame = image.convert("RGBA")
            yield number, Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame).convert("RGB")

    return np.append(0.0, ends[:-1]), float(ends[-1]), frames


# ---- single frames


def frame_files(folder: Path) -> list[Path]:
    """The pictures directly in a directory, in the order of the numbers in their names: frame 2 before frame 10."""
    names = [entry.name for entry in list_visible(folder) if is_picture(entry.name)]
    return [folder / name for name in sorted(names, key=_by_numbers)]


def _by_numbers(name: str) -> list[Any]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", name)]


def _open_frames(read: Sequence[Callable[[], bytes]], window: Window) -> Opened:
    if window.fps is not None:
        raise DataError("single frames have no rate; give data.stride in place of data.fps")

    def frames(numbers: list[int]) -> Iterator[tuple[int, Image.Image]]:
        for number in numbers:
            yield number, decode(read[number]())

    return np.arange(len(read), dtype=float), float(len(read)), frames

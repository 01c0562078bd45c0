"""Event files for TensorBoard, written by whoever calls.

`tensorboardX.SummaryWriter` writes in a thread. When that meets a full disk it ends, and the next ten values later the
run waits for it for ever.
"""

import contextlib
import io
import itertools
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

_FLUSH = 30.0  # seconds
_LARGEST = 2**24  # bytes of a file: where files are put as a whole, each that has grown is put anew

_numbers = itertools.count()  # of the files of this process


class TensorBoard:
    """Scalars and pictures of a run below `directory`; points of `purge_step` and later, which a killed run left, go.

    Every method may raise OSError. What it was about to write is lost, and the next one begins another file, as after
    every 16 MiB.
    """

    def __init__(self, directory: Path, purge_step: int):
        self._directory = directory
        self._purge_step: int | None = purge_step  # which the next file begins with
        self._last = purge_step
        self._writer: EventsWriter | None = None
        self._flushed = 0.0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._add(Event(step=step, summary=summary.scalar(name, value)))
        if time.monotonic() > self._flushed + _FLUSH:
            self.flush()

    def image(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        self._add(Event(step=step, summary=summary.image(name, picture, dataformats="HWC")))
        self.flush()

    def clip(self, step: int, name: str, gif: bytes) -> None:
        """Adds an animated GIF, which TensorBoard's tab of images plays."""
        picture = Image.open(io.BytesIO(gif), formats=["GIF"])
        shown = Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=gif)
        self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=shown)])))
        self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        self._try(lambda writer: writer.flush())
        if self._writer is not None and os.stat(self._writer._file_name).st_size > _LARGEST:
            self.close()

    def close(self) -> None:
        self._try(lambda writer: writer.close())
        self._writer = None

    def _add(self, event: Event) -> None:
        if self._writer is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            suffix = f".{os.getpid()}.{next(_numbers)}"
            self._writer = EventsWriter(str(self._directory / "events"), suffix)
            if self._purge_step is not None:
                start = Event(step=self._purge_step, session_log=SessionLog(status=SessionLog.START))
                self._try(lambda writer: writer.write_event(start))
                self._purge_step = None
        event.wall_time = time.time()
        self._last = event.step
        self._try(lambda writer: writer.write_event(event))

    def _try(self, write) -> None:
        if self._writer is None:
            return
        try:
            write(self._writer)
        except OSError as error:
            with contextlib.suppress(OSError):  # as it can't be written, closing it fails, too, but does close it
                self._writer._py_recordio_writer.close()
            self._writer = None
            self._purge_step = self._last  # nothing of this step is left from before
            raise OSError(error.errno, error.strerror, str(self._directory)) from error

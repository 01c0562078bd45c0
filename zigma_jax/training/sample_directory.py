"""A directory of samples, written as they come: pictures, arrays, and a manifest that says what belongs to it."""

import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from zigma_jax import processes
from zigma_jax.data.clips.write import can_write_movies, movie
from zigma_jax.data.pictures.files import read_picture
from zigma_jax.data.pictures.sets import Pictures, Size
from zigma_jax.errors import ConfigError, DataError
from zigma_jax.files import AnyPath, as_path, in_bucket, make_directory, remove_tree, sync_directory, write_atomically
from zigma_jax.processes import barrier, from_primary
from zigma_jax.training.preview import animation, make_grid, save_png
from zigma_jax.training.streams import ArrayParts, ArrayStream, Parts, open_stream, write_npz

MANIFEST = "manifest.json"
PROMPTS = "prompts.jsonl"
FORMAT = 1
GRID = 256  # pictures in grid.png at most,
GRID_PIXELS = 2**24  # and pixels of them: 16 pictures of 1024 x 1024
_PICTURE, _MOVIE, _ANIMATION = ".png", ".mp4", ".webp"


class SampleDirectory:
    """The samples 0 … num − 1 in a directory, of which the first `count` are there.

    A killed program's directory goes on where it was: of what the manifest does not count, nothing is kept. Each
    sample is a picture (uint8 (h, w, 3), NNNNNN.png), a video (uint8 (f, h, w, 3), NNNNNN.mp4, or NNNNNN.webp where
    PyAV is not installed) or an array alone.
    Used as a context, which closes its files. All processes call it alike: each writes its share of the pictures, and
    the first one all else.

    settings: what the samples depend on. A directory of other settings is refused, and so is any directory that holds
        something else: samples never mix.
    about: what else the manifest says, of where they are from.
    shape: of a picture or a video; None for arrays alone.
    arrays: by name, shape and type of what else there is of each sample: NAME.npy, which becomes NAME.npz unless it is
        one of `kept`.
    overwrite: remove the samples of other settings first; only what their manifest names.
    fps: frames a second of videos. frames: whether each frame of a video is a picture, too: NNNNNN-FFF.png.

    Attributes:
        finished: whether all is there, `finish` included.

    Raises:
        ConfigError: the path is a file, or holds something else. DataError: files are missing.
    """

    def __init__(
        self,
        path: AnyPath,
        num: int,
        settings: Mapping[str, Any],
        about: Mapping[str, str],
        shape: tuple[int, ...] | None = None,
        arrays: Mapping[str, tuple[tuple[int, ...], type]] | None = None,
        kept: Sequence[str] = (),
        overwrite: bool = False,
        fps: float = 8.0,
        frames: bool = False,
    ):
        self.path, self.num, self._shape, self._arrays, self._kept = path, num, shape, arrays or {}, kept
        suffix = None if shape is None else _PICTURE
        if shape is not None and len(shape) == 4:
            suffix = _MOVIE if can_write_movies() else _ANIMATION
            settings = {**settings, "fps": fps, "frames": shape[0] if frames else 0}
        self._suffix, self._fps, self._frames = suffix, fps, frames
        settings = {**settings, "num": num, "pictures": suffix and f"%06d{suffix}", "arrays": sorted(self._arrays)}
        self._manifest: dict[str, Any] = {
            "format": FORMAT,
            "finished": False,
            "count": 0,
            "num": num,
            "pictures": settings["pictures"],
            "about": dict(about),
            "settings": json.loads(json.dumps(settings)),
        }
        self._writes = processes.index() == 0
        self._streams: dict[str, ArrayStream | ArrayParts] = {}
        self._pool = _pool(path)
        self.count, self.finished = from_primary(lambda: self._open(overwrite))

    def _open(self, overwrite: bool) -> tuple[int, bool]:
        """Checks and prepares the directory; returns how many samples are there, and whether that is all."""
        check_directory(self.path)
        before, settings = _read_manifest(self.path), self._manifest["settings"]
        if before is None:
            _check_empty(self.path)
        elif before["settings"] != settings or (before["finished"] and overwrite):
            if before["count"] and not overwrite:
                raise ConfigError(_other_settings(self.path, before, settings))
            _remove(self.path, before)
        else:
            self._manifest |= {name: before[name] for name in ("count", "finished")}
        count, finished = self._manifest["count"], self._manifest["finished"]
        if finished:
            self._remove_packed(self._arrays)
            return count, finished
        make_directory(self.path)
        self._write_manifest()
        for name, (item, dtype) in self._arrays.items():
            self._streams[name] = open_stream(self.path / f"{name}.npy", (self.num, *item), dtype, count)
        return count, finished

    def __enter__(self) -> "SampleDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.close()
        self._pool.shutdown()

    def add(self, pictures: UInt8[np.ndarray, "b ..."] | None, **arrays: Shaped[np.ndarray, "b ..."]) -> None:
        """Adds the next samples. When this returns they are on the disk, and counted.

        Raises:
            OSError: they could not be written; those before them are as they were.
        """
        count = self.count + len(next(iter(arrays.values())) if pictures is None else pictures)
        try:
            if pictures is not None:
                mine = slice(processes.index(), None, processes.count())
                list(self._pool.map(self._write_picture, range(self.count, count)[mine], pictures[mine]))
            barrier(f"samples {self.count} to {count - 1} written")
            if self._writes:
                for name, rows in arrays.items():
                    self._streams[name].append(rows)
                sync_directory(self.path)
                self._write_manifest(count=count)
        except OSError as error:
            raise OSError(
                f"{error.strerror or error} while samples were written to {self.path}: the first {self.count} of "
                f"{self.num} are whole, and the same command goes on from them"
            ) from error
        self.count = count

    def finish(self, labels: Int[np.ndarray, " n"] | None, prompts: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Once all were added: arrays become NAME.npz, pictures samples.npz and grid.png, and the manifest says so.

        labels: of all samples, put beside them in an npz as `labels`.
        prompts: of each sample its "prompt" and what else there is to say of it: a line of prompts.jsonl each, and the
            texts below the pictures of the grid.
        """
        assert self.count == self.num, f"{self.count} samples of {self.num}"
        self.finished = True
        from_primary(lambda: self._pack(labels, prompts))

    def _pack(self, labels: Int[np.ndarray, " n"] | None, prompts: Sequence[Mapping[str, Any]] | None) -> None:
        beside = {} if labels is None else {"labels": Parts((self.num,), np.int32, [labels])}
        packed = {name: stream for name, stream in self._streams.items() if name not in self._kept}
        for name, stream in packed.items():
            write_npz(self.path / f"{name}.npz", {name: Parts(stream.shape, stream.dtype, stream.parts())} | beside)
        if self._shape is not None:
            if "samples" not in packed:
                parts = (picture[None] for picture in self._pictures())
                samples = Parts((self.num, *self._shape), np.uint8, parts)
                write_npz(self.path / "samples.npz", {"samples": samples} | beside)
            self._write_grid(packed.get("samples"), [str(line["prompt"]) for line in prompts] if prompts else None)
        if prompts:
            pattern = self._manifest["pictures"]
            files = [{} if pattern is None else {"file": pattern % number} for number in range(self.num)]
            lines = [json.dumps(file | dict(line)) for file, line in zip(files, prompts, strict=True)]
            write_atomically(self.path / PROMPTS, "".join(f"{line}\n" for line in lines).encode())
        for name in self._kept:
            if name in self._streams:
                self._streams[name].keep()
        self._write_manifest(finished=True)
        self._remove_packed(self._streams)

    def _remove_packed(self, names: Iterable[str]) -> None:
        """The .npy that an npz holds now, and parts. A program may have been killed before it came to that."""
        for name in names:
            remove_tree(self.path / f"{name}.parts")
            if name not in self._kept:
                (self.path / f"{name}.npy").unlink(missing_ok=True)

    def _write_picture(self, number: int, picture: UInt8[np.ndarray, "..."]) -> None:
        """Not atomically: nothing is read before the manifest counts it."""
        name = self._manifest["pictures"] % number
        if picture.ndim == 3:
            self._write(name, _png(picture))
            return
        self._write(name, self._playing(picture[None]))
        for place, frame in enumerate(picture if self._frames else ()):
            self._write(_frame_name(name, place), _png(frame))

    def _playing(self, videos: UInt8[np.ndarray, "n f h w 3"]) -> bytes:
        """The file of a video, or of several side by side."""
        if self._suffix == _ANIMATION:
            return animation(videos, _ANIMATION, self._fps)
        frames = videos[0] if len(videos) == 1 else np.stack([make_grid(frame) for frame in videos.swapaxes(0, 1)])
        return movie(frames, self._fps)

    def _write(self, name: str, data: bytes) -> None:
        path = self.path / name
        if in_bucket(path):
            write_atomically(path, data)
            return
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _pictures(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        pattern = self._manifest["pictures"]
        for numbers in itertools.batched(range(self.num), 64):
            yield from self._pool.map(lambda number: read_picture(self.path / (pattern % number)), numbers)

    def _write_grid(self, videos: ArrayStream | ArrayParts | None, prompts: list[str] | None) -> None:
        assert self._shape is not None
        count = min(self.num, GRID, max(1, GRID_PIXELS * 3 // int(np.prod(self._shape))))
        found = (video for part in videos.parts() for video in part) if videos else self._pictures()
        captions = prompts[:count] if prompts and len(self._shape) == 3 else None
        shown = np.stack(list(itertools.islice(found, count)))
        save_png(self.path / "grid.png", make_grid(shown, captions=captions))
        if len(self._shape) == 4:
            write_atomically(self.path / f"grid{self._suffix}", self._playing(shown))

    def _write_manifest(self, **changes: int) -> None:
        manifest = self._manifest | changes
        write_atomically(self.path / MANIFEST, json.dumps(manifest, indent=1).encode())
        self._manifest = manifest


def _pool(path: AnyPath) -> ThreadPoolExecutor:
    """Threads that read and write: as many as there are cores, but those of a bucket mostly wait."""
    return ThreadPoolExecutor(32 if in_bucket(path) else os.cpu_count())


def _png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _frame_name(name: str, place: int) -> str:
    """Of a frame of the video in the file `name`."""
    return f"{PurePosixPath(name).stem}-{place:03d}{_PICTURE}"


def check_directory(path: AnyPath) -> None:
    """Raises ConfigError for a path at which there can be no directory to write to."""
    path = as_path(path)
    if not isinstance(path, Path):
        if path.is_file():
            raise ConfigError(f"--output={path}: is a file, where a directory for the results is needed")
        return
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"--output={path}: {there} is a file, where a directory for the results is needed")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"--output={path}: {there} cannot be written to")


def _check_empty(path: AnyPath) -> None:
    """Raises ConfigError for a directory that holds anything but hidden files."""
    others = sorted(p.name for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else []
    if others:
        raise ConfigError(
            f"--output={path}: holds {others[0]}{' and other files' * (len(others) > 1)}, and no {MANIFEST} says that "
            "samples may go on there; name a new directory"
        )


def has_manifest(path: AnyPath) -> bool:
    """Whether `zigma_jax.sample` wrote this directory."""
    return (path / MANIFEST).is_file()


def draws_videos(path: AnyPath) -> bool:
    """Whether a directory holds a manifest of videos."""
    pattern = (_read_manifest(path) or {}).get("pictures")
    return pattern is not None and not pattern.endswith(_PICTURE)


def pictures_of(path: AnyPath, size: Size | None = None, limit: int | None = None) -> Pictures:
    """The pictures that a directory's manifest names, and no others; at most `limit`, cropped and resized to `size`.

    Raises:
        ConfigError: there are none, but videos or noise; or fewer than `limit`.
        DataError: the manifest is damaged; or not all samples were drawn yet, and no limit says that so few will do.
    """
    manifest = _read_manifest(path)
    assert manifest is not None
    count, num, pattern = manifest["count"], manifest["num"], manifest["pictures"]
    if pattern is None or not pattern.endswith(_PICTURE):
        raise ConfigError(f"{path}: holds {'noise' if pattern is None else 'videos'}, where pictures are needed")
    if not manifest["finished"] and limit is None:
        raise DataError(
            f"{path}: holds {count} of {num} samples, drawing them was interrupted; go on with the same command of "
            f"zigma_jax.sample, or take those that are there with --num={count}"
        )
    if limit is not None and limit > count:
        raise ConfigError(f"--num={limit}: {path} holds {count} samples")
    count = limit or count
    height, width = (size or read_picture(path / (pattern % 0)).shape)[:2]
    pixels = (height, width)

    def batches(batch_size: int) -> Iterator[UInt8[np.ndarray, "_b h w 3"]]:
        with _pool(path) as pool:
            for numbers in itertools.batched(range(count), batch_size):
                read = pool.map(lambda number: read_picture(path / (pattern % number), pixels), numbers)
                yield np.stack(list(read))

    return Pictures(count, (pixels[0], pixels[1]), {"directory": str(path)} | manifest["about"], batches)


def _read_manifest(path: AnyPath) -> dict[str, Any] | None:
    if not has_manifest(path):
        return None
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, not {FORMAT}")
        pattern, count, num = manifest["pictures"], manifest["count"], manifest["num"]
        sound = pattern in (None, *(f"%06d{end}" for end in (_PICTURE, _MOVIE, _ANIMATION))) and 0 <= count <= num
        if not sound or {type(manifest[key]) for key in ("settings", "about")} != {dict}:
            raise ValueError("its fields contradict each other")
        return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged, or of another program ({error}): name another directory") from error


def _other_settings(path: AnyPath, before: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    old, new = _flat(before["settings"]), _flat(settings)
    lines = [f"  {n}: {old.get(n)!r} there, {new.get(n)!r} now" for n in sorted(old | new) if old.get(n) != new.get(n)]
    return (
        f"--output={path}: holds samples of other settings ({before['count']} of {before['num']}); name another "
        "directory, or remove them with --overwrite\n" + "\n".join(lines)
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _remove(path: AnyPath, manifest: Mapping[str, Any]) -> None:
    """Removes the samples, the manifest last. More of them may be there than it counts: a killed program's."""
    arrays = [PurePosixPath(name).name for name in manifest["settings"].get("arrays", [])]
    for name in arrays:
        remove_tree(path / f"{name}.parts")
    names = [f"{name}{end}" for name in arrays for end in (".npy", ".npz")]
    names += ["samples.npz", "grid.png", f"grid{_MOVIE}", f"grid{_ANIMATION}", PROMPTS]
    if manifest["pictures"]:
        pictures = [manifest["pictures"] % number for number in range(manifest["num"])]
        frames = range(int(manifest["settings"].get("frames", 0)))
        names += pictures + [_frame_name(name, place) for name in pictures for place in frames]
    for name in (*names, MANIFEST):
        (path / PurePosixPath(name).name).unlink(missing_ok=True)

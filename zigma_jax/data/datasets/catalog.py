"""Any image set of TFDS's catalogue by name, prepared as ArrayRecord without TensorFlow.

TFDS itself prepares and reads ArrayRecord without TensorFlow, but some of its builders (cifar10, oxford_flowers102)
open files through `tf.io.gfile` and hand over arrays, which TFDS encodes with TensorFlow; lsun reads a database through
TensorFlow I/O. Where TensorFlow isn't installed, Python's `open`, Pillow and lmdb stand in while a data set is being
prepared.
"""

import contextlib
import difflib
import functools
import importlib.util
import io
import os
import socket
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.features import image_feature
from tensorflow_datasets.core.utils import tqdm_utils

from zigma_jax.data.datasets.celeba import WHERE_FROM
from zigma_jax.errors import ConfigError, DataError, MissingPackageError

DatasetBuilder = tfds.core.DatasetBuilder

_CONNECT = 15.0  # seconds until a host must have been found and have answered
_RETRIES = 3  # TFDS's ten wait three and a half minutes in all
_INSTEAD = {
    "celeb_a": f"Its drive is mostly over its quota: lay its files in DIR, and set data.name=celeba data.folder=DIR "
    f"({WHERE_FROM}); or take a mirror, data.name=hf://datasets/tpremoli/CelebA-attrs",
}
"""What to do in place of downloading a set."""


def find_builder(name: str, data_dir: str | None) -> DatasetBuilder:
    """The builder of a set of TFDS's catalogue, or of one already prepared under data_dir.

    Raises ConfigError naming `data.name` if TFDS knows none.
    """
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        close = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=1)
        raise ConfigError(
            f"data.name={name!r} is neither avatars, avatars_moving, emoji, folder, parquet, celeba, coco, ucf101, "
            f"webdataset nor hf://datasets/…, nor a set that TFDS knows or finds prepared in data.data_dir={data_dir!r}"
            + (f"; did you mean {close[0]}?" if close and close[0] != name else f": {_line(error)[:100]}")
        ) from None


def download_and_prepare(builder: DatasetBuilder) -> None:
    """Downloads a set and writes it as ArrayRecord.

    Raises DataError with what to run, if it could be neither downloaded nor prepared here; within half a minute if
    there is no network.
    """
    try:
        with _without_tensorflow(builder), _soon_without_network():
            # Google's bucket holds other formats only, and asking for them takes the network.
            download_config = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(download_config=download_config, file_format="array_record")
    except MissingPackageError:
        raise
    except Exception as error:
        command = f"python -m zigma_jax.prepare --name={builder.info.full_name.rsplit('/', 1)[0]}"
        elsewhere = (
            f"On a machine with a connection, and with TensorFlow if the error asks for it, run `{command} "
            f"--data_dir=DIR` or `tfds build {builder.name} --file_format=array_record --data_dir=DIR`, copy DIR here, "
            "and set data.data_dir=DIR"
        )
        raise DataError(
            f"data.name={builder.name!r} isn't prepared in {builder.data_dir} and could not be prepared now "
            f"({type(error).__name__}: {_line(error)}). {_INSTEAD.get(builder.name, elsewhere)}"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def _soon_without_network() -> Iterator[None]:
    """Lets TFDS's downloads fail early and quietly: each host is tried first, and no answer is waited for without end.

    TFDS's bars show once a host has answered, and its banner not at all.
    """
    held = _Held()
    download, open_url, bar = downloader._Downloader._sync_download, downloader._open_url, tqdm_utils._async_tqdm
    reachable = functools.cache(_check_reachable)

    def checked(self: Any, url: str, *arguments: Any, **options: Any) -> Any:
        reachable(*_host_of(url))
        held.shown = True
        return download(self, url, *arguments, **options)

    def timed(url: str, **options: Any) -> Any:
        return open_url(url, timeout=(_CONNECT, 60.0), **options)

    with (
        mock.patch.object(downloader._Downloader, "_sync_download", checked),
        mock.patch.object(downloader, "_open_url", timed),
        mock.patch.object(downloader, "MAX_RETRIES", _RETRIES),
        mock.patch.object(tqdm_utils, "_async_tqdm", functools.partial(bar, file=held)),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


class _Held(io.TextIOBase):
    """Standard error, for a progress bar that is not to be seen yet."""

    shown = False

    def write(self, text: str) -> int:
        return sys.stderr.write(text) if self.shown else len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _host_of(url: str) -> tuple[str, int]:
    """Whom a download talks to: the server, or the proxy that the environment names."""
    parsed = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parsed.scheme)
    if proxy and not urllib.request.proxy_bypass(parsed.hostname or ""):
        parsed = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    usual = {"https": 443, "ftp": 21}.get(parsed.scheme, 80)
    return parsed.hostname or "", parsed.port or usual


def _check_reachable(host: str, port: int) -> None:
    """Raises ConnectionError if no connection can be made; also looking up a name can take too long."""
    outcome: list[Exception | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_CONNECT).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_CONNECT)
    if not outcome or outcome[0] is not None:
        reason = outcome[0] if outcome else f"no answer within {_CONNECT:.0f} s"
        raise ConnectionError(f"{host} cannot be reached: {reason}")


@contextlib.contextmanager
def _without_tensorflow(builder: DatasetBuilder) -> Iterator[None]:
    module = sys.modules[type(builder).__module__]
    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    gfile = SimpleNamespace(GFile=open, exists=os.path.exists)
    graph = SimpleNamespace(as_default=contextlib.nullcontext)
    tensorflow = SimpleNamespace(io=SimpleNamespace(gfile=gfile), Graph=lambda: graph)
    with contextlib.ExitStack() as stack:
        if hasattr(module, "tf"):
            stack.enter_context(mock.patch.object(module, "tf", tensorflow))
        if builder.name == "lsun":
            database = SimpleNamespace(IODataset=SimpleNamespace(from_lmdb=_read_lmdb))
            stack.enter_context(mock.patch.object(module.tfds.core.lazy_imports, "tensorflow_io", database))
            stack.enter_context(mock.patch.object(module.tfds, "as_numpy", lambda dataset: dataset))
        stack.enter_context(mock.patch.object(image_feature._ImageEncoder, "_encode_image", _encode_with_pillow))
        yield


def _read_lmdb(path: str) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a database, given by the path of its data.mdb, in the order of the keys."""
    try:
        import lmdb
    except ImportError as error:
        raise MissingPackageError(f"data.name='lsun' needs lmdb: install zigma_jax[lsun] ({error})") from None
    with lmdb.open(os.path.dirname(path), readonly=True, lock=False) as database, database.begin() as transaction:
        yield from transaction.cursor()


def _encode_with_pillow(encoder: image_feature._ImageEncoder, pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(out, encoder.encoding_format)
    return out.getvalue()

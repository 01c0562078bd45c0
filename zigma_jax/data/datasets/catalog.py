"""Any image set of TFDS's catalogue by name, prepared as ArrayRecord without TensorFlow.

TFDS itself prepares and reads ArrayRecord without TensorFlow, but some of its builders (cifar10,
oxford_flowers102) open files through `tf.io.gfile` and hand over arrays, which TFDS encodes with
TensorFlow. Where TensorFlow isn't installed, Python's `open` and Pillow stand in for these two while a
data set is being prepared.
"""

import contextlib
import importlib.util
import io
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.features import image_feature

DatasetBuilder = tfds.core.DatasetBuilder


def find_builder(name: str, data_dir: str | None) -> DatasetBuilder:
    """The builder of a set of TFDS's catalogue, or of one already prepared under data_dir.

    Raises ValueError naming `data.name` if TFDS knows none.
    """
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(
            f"data.name={name!r} is neither avatars, emoji nor folder, nor a set that TFDS knows or finds "
            f"prepared in "
            f"data.data_dir={data_dir!r}: {error}"
        ) from None


def download_and_prepare(builder: DatasetBuilder) -> None:
    """Downloads a set and writes it as ArrayRecord.

    Raises RuntimeError with what to run, if it could be neither downloaded nor prepared here.
    """
    try:
        with _without_tensorflow(builder):
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        command = f"python -m zigma_jax.prepare --name={builder.info.full_name.rsplit('/', 1)[0]}"
        raise RuntimeError(
            f"data.name={builder.name!r} isn't prepared in {builder.data_dir} and could not be prepared now "
            f"({type(error).__name__}: {error}). On a machine with a connection, and with TensorFlow if the "
            f"error asks for "
            f"it, run `{command} --data_dir=DIR` or `tfds build {builder.name} --file_format=array_record "
            f"--data_dir=DIR`, copy DIR here, and set data.data_dir=DIR"
        ) from error


@contextlib.contextmanager
def _without_tensorflow(builder: DatasetBuilder) -> Iterator[None]:
    module = sys.modules[type(builder).__module__]
    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    tensorflow = SimpleNamespace(io=SimpleNamespace(gfile=SimpleNamespace(GFile=open)))
    with contextlib.ExitStack() as stack:
        if hasattr(module, "tf"):
            stack.enter_context(mock.patch.object(module, "tf", tensorflow))
        stack.enter_context(mock.patch.object(image_feature._ImageEncoder, "_encode_image", _encode_with_pillow))
        yield


def _encode_with_pillow(encoder: image_feature._ImageEncoder, pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(out, encoder.encoding_format)
    return out.getvalue()

"""Records of sets that TFDS has prepared as ArrayRecord."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from zigma_jax.data.source import SourceInfo
from zigma_jax.errors import DataError

CAPTIONS = ("caption", "captions", "text", "texts", "prompt", "prompts")
"""What the feature or column of the captions is usually called, in the order in which they are looked for."""
_SEPARATOR = "/"
_ATTRIBUTES = f"attributes{_SEPARATOR}"  # where sets, CelebA for one, keep what else is known of a picture


class PreparedSource:
    """One split of a prepared set, read from ArrayRecord; see `Source`.

    image, label, caption: the names of the features to take ("attributes/Smiling" for one inside of another). By
    default pictures are the feature `image`, else the first of pictures. A set without pictures may have clips: a
    sequence of pictures, or the feature `video` that holds a file's bytes. Classes are `label`, else the first
    ClassLabel; captions are the first of `CAPTIONS` that holds text or several texts.

    Raises DataError: neither pictures nor clips, a feature or split that isn't there, an empty split, a set in another
    file format.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        *,
        image: str | None = None,
        label: str | None = None,
        caption: str | None = None,
    ):
        name = builder.name
        if not isinstance(builder.info.features, tfds.features.FeaturesDict):
            raise DataError(f"data.name={name!r}: its records are {builder.info.features}, not dictionaries")
        features = _flat(builder.info.features)
        images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        clips = [key for key, feature in features.items() if _is_clip(key, feature)]
        if not images and not clips:
            raise DataError(f"data.name={name!r} has no pictures; its features: {', '.join(features)}")
        labels = [key for key, feature in features.items() if _is_label(feature)]
        texts = [key for key, feature in features.items() if _is_text(feature) and key not in clips]
        classes = [k for k in labels if isinstance(features[k], tfds.features.ClassLabel) and _SEPARATOR not in k]
        found = images or clips
        self._image = _choose(name, "image", image, found) or ("image" if "image" in found else found[0])
        self._label = _choose(name, "label", label, labels) or next(iter(sorted(classes, key="label".__ne__)), None)
        self._text = _choose(name, "caption", caption, texts) or next((k for k in CAPTIONS if k in texts), None)
        # Only what training needs is parsed. Pictures stay encoded: decoding is ours, one rule for every set,
        # and damage is caught where it is counted.
        self._features = _only(features | {key: _as_bytes(features[key]) for key in clips}, [self._image, self._label])
        self._texts = _only(features, [self._text])
        of_attributes = {
            key: of for key, of in sorted(features.items()) if key in labels and key.startswith(_ATTRIBUTES)
        }
        self._attributes = _only(features, list(of_attributes))
        self.attribute_names = {
            key.removeprefix(_ATTRIBUTES): _class_names(key, feature) for key, feature in of_attributes.items()
        }
        """The values of each attribute that pictures have beside their class; in order, as `attributes` counts them."""
        try:
            # ArrayRecord's own reader: TFDS's takes the builder along when it's sent to another process.
            self._records = builder.as_data_source(split).data_source  # pyright: ignore[reportCallIssue]
            files = builder.info.splits[split].file_instructions
        except NotImplementedError:
            raise DataError(
                f"data.name={name!r} is prepared in {builder.data_dir} as {builder.info.file_format}, which can't be "
                "read at random; move that folder away, or set another data.data_dir"
            ) from None
        except (ValueError, KeyError) as error:
            raise DataError(
                f"data.split={split!r}: data.name={name!r} has the splits "
                f"{', '.join(sorted(builder.info.splits))} ({error})"
            ) from None
        redistribution = builder.info.redistribution_info
        names = _class_names(self._label, features[self._label]) if self._label else ()
        self.info = SourceInfo(
            name=builder.info.full_name,
            split=split,
            length=len(self._records),
            num_classes=len(names),
            class_names=names,
            has_captions=self._text is not None,
            licence=(redistribution.license if redistribution else "") or "not stated: see the set's homepage",
            path=str(builder.data_path),
            has_pictures=bool(images),
            has_clips=not images,
            fingerprint=_fingerprint(builder.info.full_name, files, (self._image, self._label, self._text)),
        )
        if self.info.length == 0:
            raise DataError(f"data.split={split!r} of data.name={name!r} is empty")

    def __len__(self) -> int:
        return self.info.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record: its picture or clip, still encoded, and its class if there are classes."""
        if self.info.has_clips:
            return self._features.deserialize_example_np(self._records[index])  # pyright: ignore[reportReturnType]
        skip: Any = tfds.decode.SkipDecoding()
        for key in reversed(self._image.split(_SEPARATOR)):
            skip = {key: skip}
        return self._features.deserialize_example_np(self._records[index], decoders=skip)  # pyright: ignore

    def picture(self, record: dict[str, Any]) -> bytes:
        """The encoded picture of a record."""
        return _at(record, self._image)

    def clip(self, record: dict[str, Any]) -> bytes | list[bytes]:
        """The clip of a record: a file, or its frames, each of them encoded."""
        return _at(record, self._image)

    def label(self, record: dict[str, Any]) -> int:
        """The class of a record; only for sets with classes.

        Raises DataError naming the record's file and the rule, if it is out of range.
        """
        if self._label is None:
            raise DataError(f"{self.info.name} has no classes")
        label = int(_at(record, self._label))
        if not 0 <= label < self.info.num_classes:
            raise DataError(
                f"a record of {self.info.name} ({self.info.path}) has {self._label}={label}, which must "
                f"be at least 0 and less than the set's num_classes={self.info.num_classes}"
            )
        return label

    def captions(self, index: int) -> list[str]:
        """All captions of record `index`. Raises DataError if the set has none."""
        if self._text is None:
            raise DataError(f"{self.info.name} has no captions")
        found: Any = _at(self._texts.deserialize_example_np(self._records[index]), self._text)
        if isinstance(found, dict):
            found = found["text"]
        return [text.decode() for text in ([found] if isinstance(found, bytes) else found)]

    def attributes(self, index: int) -> dict[str, int]:
        """The attributes of record `index`, each by the place of its value in `attribute_names`."""
        found = self._attributes.deserialize_example_np(self._records[index])
        return {name: int(_at(found, _ATTRIBUTES + name)) for name in self.attribute_names}


def _flat(features: Any, prefix: str = "") -> dict[str, Any]:
    """Features by their path, those in dictionaries too."""
    found = {}
    for key, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            found |= _flat(feature, f"{prefix}{key}{_SEPARATOR}")
        else:
            found[prefix + key] = feature
    return found


def _only(features: dict[str, Any], paths: list[str | None]) -> tfds.features.FeaturesDict:
    """The features at `paths` alone, nested as before."""
    nested: dict[str, Any] = {}
    for path in paths:
        if path is not None:
            *parents, last = path.split(_SEPARATOR)
            inner = nested
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = features[path]
    return tfds.features.FeaturesDict(nested)


def _at(record: Any, path: str) -> Any:
    for key in path.split(_SEPARATOR):
        record = record[key]
    return record


def _is_clip(key: str, feature: Any) -> bool:
    """A sequence of pictures; or, by the name `video` alone, a file of whatever format."""
    if isinstance(feature, tfds.features.Sequence):
        return isinstance(feature.feature, tfds.features.Image)
    return key == "video" and _is_text(feature)


def _as_bytes(feature: Any) -> Any:
    """The feature of a clip, such that nothing of it is decoded: TFDS cannot leave sequences undecoded by itself."""
    raw = tfds.features.Scalar(np.object_)
    return tfds.features.Sequence(raw) if isinstance(feature, tfds.features.Sequence) else raw


def _is_label(feature: Any) -> bool:
    """Classes, or yes and no."""
    if isinstance(feature, tfds.features.ClassLabel):
        return bool(feature.num_classes)
    return type(feature) in (tfds.features.Scalar, tfds.features.Tensor) and (
        feature.shape == () and np.dtype(feature.np_dtype) == np.bool_
    )


def _is_text(feature: Any) -> bool:
    """A text, several, or several dictionaries with a text each."""
    if isinstance(feature, tfds.features.Sequence):
        inner: Any = feature.feature
        return _is_text(inner["text"] if isinstance(inner, tfds.features.FeaturesDict) and "text" in inner else inner)
    if type(feature) in (tfds.features.Scalar, tfds.features.Tensor):  # a bare string, as in coco_captions
        return feature.shape == () and np.dtype(feature.np_dtype).kind in "OSU"
    return isinstance(feature, tfds.features.Text)


def _class_names(path: str, feature: Any) -> tuple[str, ...]:
    if isinstance(feature, tfds.features.ClassLabel):
        return tuple(feature.names)
    name = path.rsplit(_SEPARATOR, 1)[-1]
    return (f"not {name}", name)


def _choose(name: str, kind: str, wanted: str | None, found: list[str]) -> str | None:
    if wanted is not None and wanted not in found:
        raise DataError(
            f"data.{kind}_column={wanted!r}: data.name={name!r} has no such {kind}; it has {', '.join(found) or 'none'}"
        )
    return wanted


def _fingerprint(name: str, files: Any, features: tuple[str | None, ...]) -> str:
    digest = hashlib.sha256(repr((name, features)).encode())
    for file in files:
        path = Path(file.filename)
        digest.update(repr((path.name, path.stat().st_size, file.skip, file.take)).encode())
    return digest.hexdigest()

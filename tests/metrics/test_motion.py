"""Motion: a picture that stands still is seen, whatever it shows; distances of clips against another program's."""

import numpy as np
import pytest
import scipy.linalg

from zigma_jax.errors import DataError
from zigma_jax.metrics import changes, extract, frechet_distance, frozen, motion, shuffled

CLIPS = (np.cumsum(np.random.default_rng(0).integers(0, 3, (40, 6, 8, 8, 3)), axis=1) * 9).astype(np.uint8)


def test_changes_are_means_of_differences_in_levels():
    clip = np.array([0, 10, 4], np.uint8)[None, :, None, None, None] * np.ones((1, 3, 2, 2, 3), np.uint8)
    np.testing.assert_array_equal(changes(clip), [[10.0, 6.0]])
    with pytest.raises(DataError, match="1 frames"):
        changes(clip[:, :1])


def test_a_frozen_picture_and_shuffled_frames_lie_apart():
    real, held_out = changes(CLIPS[:20]), changes(CLIPS[20:])
    found = {
        "held out": motion(held_out, real),
        "frozen": motion(changes(frozen(CLIPS[20:])), real),
        "shuffled": motion(changes(shuffled(CLIPS[20:])), real),
    }
    assert found["frozen"] == {"motion": 0.0, "motion-distance": pytest.approx(real.mean(), rel=1e-3)}
    distances = {name: values["motion-distance"] for name, values in found.items()}
    assert distances["held out"] < 0.2 * min(distances["frozen"], distances["shuffled"])


def test_shuffling_depends_on_the_number_of_the_clip_alone():
    whole = shuffled(CLIPS)
    np.testing.assert_array_equal(np.concatenate([shuffled(CLIPS[:7]), shuffled(CLIPS[7:], 7)]), whole)
    assert (np.sort(whole, axis=1) == np.sort(CLIPS, axis=1)).all()


class Colours:
    """A network of videos: the mean colour of each frame."""

    name, fingerprint, of_videos = "colours", "0", True

    def __call__(self, images):
        return {"pool": images.astype(np.float32).mean((2, 3)).reshape(len(images), -1)}


def test_the_distance_of_clips_is_that_of_another_program():
    rng = np.random.default_rng(1)
    sets = [rng.integers(0, high, (64, 3, 8, 8, 3)).astype(np.uint8) for high in (200, 256)]
    ours = frechet_distance(*(extract(Colours(), [videos]).gaussians["pool"] for videos in sets))
    rows = [np.asarray(Colours()(videos), dtype=object).item()["pool"].astype(np.float64) for videos in sets]
    (m, s), (n, t) = ((row.mean(0), np.cov(row, rowvar=False)) for row in rows)
    reference = np.square(m - n).sum() + np.trace(s + t - 2 * np.real(scipy.linalg.sqrtm(s @ t)))
    assert ours == pytest.approx(reference, rel=1e-4)

"""What distances over pairs of features must satisfy, whatever the blocks they are computed in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zigma_jax.metrics import inception_score, kernel_distance, pairwise, prdc, unbiased_kernel_distance
from zigma_jax.metrics.kernel_distance import _block_sums
from zigma_jax.metrics.prdc import _compare, _nearest


def cloud(n, d=8, shift=0.0):
    return (np.random.default_rng(n).normal(size=(n, d)) + shift).astype(np.float32)


def prdc_float64(fake, real, k, density_k):
    """The definitions, pair by pair."""
    fake, real = fake.astype(np.float64), real.astype(np.float64)

    def distances(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1)

    def radii(x, k):
        return np.sort(distances(x, x), 1)[:, k]

    between = distances(real, fake)
    held = between < radii(real, density_k)[:, None]
    return {
        "precision": (between <= radii(real, k)[:, None]).any(0).mean(),
        "recall": (between <= radii(fake, k)[None]).any(1).mean(),
        "density": held.sum(0).mean() / density_k,
        "coverage": held.any(1).mean(),
    }


@pytest.mark.parametrize("block", [1024, 48])  # one block each; 48: three of real and two of fake samples
def test_prdc_by_definition(block, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK", block)
    fake, real = cloud(70, shift=0.3), cloud(130)
    expected = prdc_float64(fake, real, 2, 4)
    assert 0.1 < expected["precision"] < 1
    assert expected["density"] != pytest.approx(expected["precision"])
    assert prdc(fake, real, k=2, density_k=4) == pytest.approx(expected, rel=1e-12)


def test_prdc_of_features_far_from_the_origin():
    """Not centred, float32 would keep two digits of a distance here."""
    far = np.float32(3000)
    fake, real = cloud(70, shift=0.3) + far, cloud(130) + far
    assert prdc(fake, real) == pytest.approx(prdc_float64(fake, real, 3, 5), rel=1e-12)


@pytest.mark.parametrize("few", [4096, 3])  # close pairs one by one; 3: whole blocks
def test_prdc_of_tight_groups_far_from_each_other(few, monkeypatch):
    """|x|² + |y|² − 2 x · y in float32 has an error of 0.1 here, where distances are 0.004 to 0.05."""
    monkeypatch.setattr(pairwise, "_FEW", few)
    jax.clear_caches()  # the limit is read when the functions are traced
    steps = np.arange(6) / 100
    real = np.concatenate([1000 + steps, -1000 - steps]).astype(np.float32)[:, None]
    fake = real + np.float32(0.004)
    assert prdc(fake, real) == pytest.approx(prdc_float64(fake, real, 3, 5), rel=1e-12)
    assert prdc(fake, real)["density"] == pytest.approx(1.1)
    groups = np.random.default_rng(0).normal(size=(4, 16)) * 300
    real, fake = (groups[np.arange(n) % 4] + 1e-2 * cloud(n, 16) for n in (60, 70))
    assert prdc(fake, real) == pytest.approx(prdc_float64(fake, real, 3, 5), rel=1e-12)
    jax.clear_caches()


@pytest.mark.parametrize("block", [1024, 32])
def test_a_set_in_itself(block, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK", block)
    x = cloud(90)
    assert prdc(x, x.copy()) == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}


def test_duplicates_lie_in_each_others_balls():
    x = np.repeat(cloud(6, 300), 8, 0)  # every ball has the radius zero
    assert prdc(x, x)["precision"] == prdc(x, x)["recall"] == 1
    assert prdc(x + np.float32(0.1), x)["precision"] == 0


def test_far_apart():
    assert prdc(cloud(40) + 100, cloud(50)) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def kernel_float64(x, y):
    def k(a, b):
        return (a.astype(np.float64) @ b.T.astype(np.float64) / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    within = (k(x, x).sum() - np.trace(k(x, x))) / (n * (n - 1)) + (k(y, y).sum() - np.trace(k(y, y))) / (m * (m - 1))
    return within - 2 * k(x, y).mean()


@pytest.mark.parametrize("block", [1024, 100])
def test_kernel_distance_of_close_sets(block, monkeypatch):
    """Values of 10² whose means differ by 10⁻³, which plain float32 sums get wrong in the fourth digit."""
    monkeypatch.setattr(pairwise, "BLOCK", block)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(2, 1000, 4)) @ rng.normal(size=(4, 512)) / 10 + 2).astype(np.float32)
    expected = kernel_float64(x, y)
    assert 5e-4 < expected < 1e-3
    assert unbiased_kernel_distance(x, y) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("offset", "spread"), [(3, 1), (30, 0.1), (1000, 0.01)])
def test_kernel_distance_of_tight_groups_far_from_zero(offset, spread):
    """The kernel is 10¹⁸ at the last, and the distance 10⁴ times smaller than its rounding in float32."""
    x = (offset + spread * cloud(400)).astype(np.float32)
    y = (offset + spread * (1 + cloud(300))).astype(np.float32)
    exact = [unbiased_kernel_distance(x, y), kernel_longdouble(x, y)]
    assert exact[0] == pytest.approx(exact[1], rel=1e-4)


def kernel_longdouble(x, y):
    """The definition in 80 bits, where float64 itself loses half of its digits."""

    def k(a, b):
        return (a.astype(np.longdouble) @ b.T.astype(np.longdouble) / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    within = (k(x, x).sum() - np.trace(k(x, x))) / (n * (n - 1)) + (k(y, y).sum() - np.trace(k(y, y))) / (m * (m - 1))
    return float(within - 2 * k(x, y).mean())


def test_kernel_distance_is_about_zero_within_a_distribution():
    x, y = cloud(2000, 4), cloud(2001, 4)
    mean, std = kernel_distance(x, y, subsets=20, subset_size=200)
    assert abs(mean) < 3 * std / np.sqrt(20)
    assert kernel_distance(x, y + 1, subsets=5, subset_size=200)[0] > 10 * std
    assert kernel_distance(x, y, subsets=3, subset_size=200) == kernel_distance(x, y, subsets=3, subset_size=200)


def test_memory_and_precision_of_pairs():
    """One block of pairs at a time, never pairs × dimensions; products in float32 on machines that round them."""
    d, n = 512, 40
    x, radii, count = np.ones((3, n, d), np.float32), np.ones((3, n), np.float32), 3 * n
    blocks = pairwise.Blocks(jnp.asarray(x), jnp.asarray(x))
    for lowered in (
        _nearest.lower(blocks, count, k=3),
        _compare.lower(blocks, blocks, count, count, radii, radii, radii),
        _block_sums.lower(x, x, 1.0, 1.0),
    ):
        assert lowered.as_text().count("dot_general") == lowered.as_text().count("precision = [HIGHEST, HIGHEST]") > 0
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < 2 * x.nbytes + 20 * n * n * 4 < n * n * d * 4  # rounded rows, and the rest


def test_inception_score_ends():
    sure = 100 * np.eye(4, dtype=np.float32)[np.arange(40) % 4]
    assert inception_score(sure, splits=1)[0] == pytest.approx(4)
    assert inception_score(np.zeros((40, 4), np.float32)) == pytest.approx((1, 0))
    assert inception_score(sure[:1].repeat(40, 0)) == pytest.approx((1, 0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prdc(cloud(9, 3), cloud(9, 4)), r"same dimension.*\(9, 3\).*\(9, 4\)"),
        (lambda: prdc(cloud(3), cloud(9)), "generated: 3 samples: must be more than the 3"),
        (lambda: prdc(cloud(9), cloud(5)), "reference: 5 samples: must be more than the 5"),
        (lambda: prdc(cloud(9), cloud(9), k=0), "k = 0"),
        (lambda: prdc(cloud(9), cloud(9) * np.float32(np.nan)), "reference: row 0 is not finite"),
        (lambda: kernel_distance(cloud(99), cloud(1000)), "99 samples: a subset takes 1000; .*unbiased"),
        (lambda: kernel_distance(cloud(9), cloud(9), subset_size=1), "subset_size = 1"),
        (lambda: unbiased_kernel_distance(cloud(1), cloud(9)), "at least 2"),
        (lambda: unbiased_kernel_distance(cloud(9, 3), cloud(9, 4)), "same dimension"),
        (lambda: inception_score(cloud(9)), "splits = 10: must be in 1 … 9"),
        (lambda: inception_score(cloud(99) * np.float32(np.inf)), "not finite"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

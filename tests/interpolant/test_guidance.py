import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zigma_jax.errors import ConfigError
from zigma_jax.interpolant import Interpolant, autoguide, guide, sample_ode, sample_sde

IP = Interpolant()
Y = jnp.array([0, 1, 2, 0, 1, 2, 0, 1])
NULL = 3
W = jax.random.normal(jax.random.key(0), (4, 5))
Z = jax.random.normal(jax.random.key(1), (8, 5))


def model_fn(x, t, y):
    """A model of labels, or of text tokens (b, m, 5)."""
    condition = W[y] if jnp.issubdtype(y.dtype, jnp.integer) else y.mean(1)
    return jnp.tanh(condition * t[:, None]) - 0.5 * x


def run(model_fn, kind="heun"):
    if kind == "sde":
        return sample_sde(IP, model_fn, Z, jax.random.key(2), steps=10)
    return sample_ode(IP, model_fn, Z, method=kind, steps=10)


@pytest.mark.parametrize("kind", ["heun", "sde"])
def test_scale_1_is_the_conditional_model_and_0_the_unconditional_to_the_bit(kind):
    sample = jax.jit(lambda model_fn: run(model_fn, kind), static_argnums=0)
    given_y, given_null = (sample(lambda x, t, y=y: model_fn(x, t, y)) for y in (Y, jnp.full(8, NULL)))
    np.testing.assert_array_equal(sample(guide(model_fn, Y, NULL, 1.0)), given_y)
    np.testing.assert_array_equal(sample(guide(model_fn, Y, NULL, 0.0)), given_null)
    assert np.abs(given_y - given_null).max() > 0.1


@pytest.mark.parametrize("kind", ["heun", "dopri5", "sde"])
def test_guided_samplers_follow_the_guided_field(kind):
    lo, hi = 0.3, 0.7

    def by_hand(x, t):
        given_y, given_null = model_fn(x, t, Y), model_fn(x, t, jnp.full(8, NULL))
        inside = ((lo <= t) & (t <= hi))[:, None]
        return jnp.where(inside, given_null + 2.5 * (given_y - given_null), given_y)

    sample = jax.jit(lambda model_fn: run(model_fn, kind), static_argnums=0)
    guided = sample(guide(model_fn, Y, NULL, 2.5, (lo, hi)))
    np.testing.assert_allclose(guided, sample(by_hand), atol=1e-5)


@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
def test_guidance_of_a_prediction_is_guidance_of_the_velocity(prediction):
    ip, t = Interpolant("gvp", prediction), jnp.linspace(0.1, 0.9, 8)
    drift = ip.drift(guide(model_fn, Y, NULL, 3.0), Z, t)
    given_y, given_null = (ip.drift(lambda x, t, y=y: model_fn(x, t, y), Z, t) for y in (Y, jnp.full(8, NULL)))
    np.testing.assert_allclose(drift, given_null + 3 * (given_y - given_null), rtol=1e-4, atol=1e-4)


def test_text_and_a_learned_null():
    text, t = jax.random.normal(jax.random.key(3), (8, 2, 5)), jnp.full(8, 0.5)
    for null in (jnp.zeros_like(text), jnp.ones((2, 5)), 0):
        ours = guide(model_fn, text, null, 4.0)(Z, t)
        given_null = model_fn(Z, t, jnp.broadcast_to(jnp.asarray(null, jnp.float32), text.shape))
        np.testing.assert_allclose(ours, given_null + 4 * (model_fn(Z, t, text) - given_null), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_a_tree_of_conditions(scale):
    """Tokens and their mask: every part of y is led away from the same part of null."""

    def of_tree(x, t, y):
        return model_fn(x, t, y["tokens"] * y["mask"][..., None])

    def arrays(y):
        return y["tokens"] * y["mask"][..., None]

    t = jnp.full(8, 0.5)
    y = {"tokens": jax.random.normal(jax.random.key(3), (8, 2, 5)), "mask": jnp.arange(16).reshape(8, 2) % 3 > 0}
    null = {"tokens": np.ones((1, 2, 5), np.float16), "mask": np.array([[True, False]])}
    ours = guide(of_tree, y, null, scale)(Z, t)
    np.testing.assert_allclose(ours, guide(model_fn, arrays(y), arrays(null), scale)(Z, t), atol=1e-6)
    with pytest.raises(ConfigError, match="they must be alike"):
        guide(of_tree, y, {"tokens": null["tokens"]}, scale)
    with pytest.raises(ConfigError, match=r"null has shape \(3, 5\), which does not broadcast to y's"):
        guide(of_tree, y, null | {"tokens": np.ones((3, 5))}, scale)


def test_samples_of_a_batch_at_different_times():
    """Adaptive steps: a sample outside of the interval gets the conditional model beside guided ones."""
    t = jnp.linspace(0, 1, 8)
    ours = guide(model_fn, Y, NULL, 3.0, (0.4, 1.0))(Z, t)
    np.testing.assert_allclose(ours[t < 0.4], model_fn(Z, t, Y)[t < 0.4], rtol=1e-6)
    assert np.abs(ours - model_fn(Z, t, Y))[t >= 0.4].min(axis=1).max() > 1e-3


def count_batches(method, scale, interval=(0.0, 1.0), steps=11):
    """Sizes of the batches that the model was called with, in order."""
    sizes = []

    def counted(x, t, y):
        assert x.shape[0] == t.shape[0] == y.shape[0]
        jax.debug.callback(lambda: sizes.append(x.shape[0]), ordered=True)
        return model_fn(x, t, y)

    guided = guide(counted, Y, NULL, scale, interval)
    jax.block_until_ready(jax.jit(lambda z: sample_ode(IP, guided, z, method=method, steps=steps))(Z))
    jax.effects_barrier()
    return sizes


def test_cost_is_one_double_batch_inside_the_interval_and_nothing_more():
    assert count_batches("euler", 4.0) == [16] * 10
    assert count_batches("heun", 4.0) == [16] * 20  # the last at t = 1, rounding or not
    assert count_batches("euler", 1.0) == count_batches("euler", 0.0) == [8] * 10
    assert count_batches("euler", 0.0, (0.35, 0.55)) == [8] * 10
    # evaluations at t = 0, 0.1, … 0.9
    assert count_batches("euler", 4.0, (0.35, 0.55)) == [8] * 4 + [16] * 2 + [8] * 4


def test_scale_0_in_an_interval():
    t = jnp.linspace(0, 1, 8)
    ours = guide(model_fn, Y, NULL, 0, (0.5, 1))(Z, t)
    np.testing.assert_array_equal(ours, model_fn(Z, t, jnp.where(t >= 0.5, NULL, Y)))


def test_the_doubled_batch_stays_on_its_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    z, y = (jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in (Z, Y))
    sample = jax.jit(lambda z, y: sample_ode(IP, guide(model_fn, y, NULL, 4.0), z, method="euler", steps=4))
    text = sample.lower(z, y).compile().as_text() or ""
    assert "while" in text
    assert not [line for line in text.splitlines() if "all-gather" in line or "all-to-all" in line or "permute" in line]
    np.testing.assert_allclose(sample(z, y), sample(Z, Y), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": float("nan")}, "guidance scale = nan must be finite"),
        ({"scale": 2.0, "interval": (0.6, 0.5)}, r"guidance interval = \(0.6, 0.5\) must be \(lo, hi\)"),
        ({"scale": 2.0, "interval": (0.5, 1.5)}, "guidance interval"),
        ({"scale": 2.0, "interval": (0.5,)}, "guidance interval"),
        ({"scale": 2.0, "null": jnp.zeros(3, int)}, r"null has shape \(3,\), which does not broadcast to y's, \(8,\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        guide(model_fn, Y, **({"null": NULL} | arguments))


@pytest.mark.parametrize("scale", [1e38, -1e38, float("nan"), float("inf")])
def test_scales_that_no_sample_survives_are_refused(scale):
    with pytest.raises(ValueError, match="guidance scale"):
        guide(model_fn, Y, NULL, scale)


def test_the_null_class_does_not_wrap():
    """256 is no uint8: it would be class 0."""
    seen = []

    def spy(x, t, y):
        seen.append(np.asarray(y))
        return x

    guide(spy, np.full(2, 255, np.uint8), 256, 2.0)(jnp.ones((2, 3)), jnp.full(2, 0.5))
    np.testing.assert_array_equal(seen[0], [255, 256, 255, 256])


def test_autoguidance_leads_away_from_the_weak_model():
    x, t = jnp.ones((4, 3)), jnp.array([0.1, 0.4, 0.6, 0.9])

    def model(x, t, y):
        return x + y

    def weak(x, t, y):
        return x * 0.5 + y

    found = autoguide(model, weak, 2.0, 3.0)(x, t)
    np.testing.assert_allclose(found, np.full((4, 3), 2.5 + 3.0 * 0.5))
    inside = autoguide(model, weak, 2.0, 3.0, interval=(0.3, 0.7))(x, t)
    np.testing.assert_allclose(inside[:, 0], [3.0, 4.0, 4.0, 3.0])
    np.testing.assert_array_equal(autoguide(model, weak, 2.0, 1.0)(x, t), model(x, t, 2.0))
    with pytest.raises(ConfigError, match="guidance scale = inf"):
        autoguide(model, weak, 2.0, np.inf)


def test_a_traced_scale():
    """One program for all scales; at 0 and 1, too, what the number gives."""
    guided = jax.jit(lambda scale, x, t: guide(model_fn, Y, NULL, scale)(x, t))
    t = jnp.full(8, 0.4)
    for scale in (0.0, 1.0, 2.5):
        np.testing.assert_allclose(guided(scale, Z, t), guide(model_fn, Y, NULL, scale)(Z, t), atol=1e-6)

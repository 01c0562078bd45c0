"""Samples become the right bytes, on the devices, whatever the batches; latents by their autoencoder, or not at all."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.fake_autoencoder import FakeAutoencoder
from zigma_jax.data.config import LatentConfig
from zigma_jax.errors import ConfigError
from zigma_jax.training import decoding
from zigma_jax.training.decoding import NOT_FINITE, Decoder, open_autoencoder
from zigma_jax.training.sharding import make_mesh

ONE = make_mesh(1, jax.devices()[:1])
ALL = make_mesh(1, jax.devices())
LATENT = (4, 6, 4)  # of pictures of 8 x 12


def latents(count, shape=LATENT):
    return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


def test_every_level_comes_back_and_what_lies_between_is_rounded():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    samples = levels.astype(np.float32) / np.float32(127.5) - 1
    decoder = Decoder((16, 16, 1), ONE)
    assert (decoder.picture_shape, decoder.size) == ((16, 16, 3), (16, 16))
    np.testing.assert_array_equal(decoder(samples), np.repeat(levels, 3, axis=-1))
    shifted = samples + np.float32(0.4 / 127.5)
    np.testing.assert_array_equal(decoder.checked(jnp.asarray(shifted)), np.repeat(levels, 3, axis=-1))
    assert decoder(np.full((1, 16, 16, 1), 7, np.float32)).min() == 255
    assert decoder(np.full((1, 16, 16, 1), -7, np.float32)).max() == 0
    assert decoder(jnp.zeros((1, 16, 16, 1), jnp.bfloat16)).max() == 128


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named_or_seen(value):
    samples = np.zeros((4, 8, 8, 3), np.float32)
    samples[2, 3, 5, 1] = value
    decoder = Decoder((8, 8, 3), ONE)
    with pytest.raises(FloatingPointError, match="sample 9 is not finite"):
        decoder.checked(samples, first=7)
    picture = decoder(samples)[2]
    assert tuple(picture[3, 5]) == NOT_FINITE
    assert (picture == NOT_FINITE).all(-1).sum() == 1

    hidden = latents(4)
    hidden[2, 0, 0, 0] = value  # tanh makes an ordinary number of infinity
    decoder = Decoder(LATENT, ONE, FakeAutoencoder.make())
    with pytest.raises(FloatingPointError, match="sample 9 is not finite"):
        decoder.checked(hidden, first=7)
    assert (decoder(hidden)[2] == NOT_FINITE).all()
    np.testing.assert_array_equal(decoder(hidden)[[0, 1, 3]], decoder(latents(4))[[0, 1, 3]])


def test_neither_devices_nor_batches_change_a_picture_by_more_than_a_level():
    samples = latents(15)
    expected = Decoder(LATENT, ONE, FakeAutoencoder.make())(samples)
    assert expected.shape == (15, 8, 12, 3)
    assert expected.std() > 30
    for mesh in (ONE, ALL):
        decoder = Decoder(LATENT, mesh, FakeAutoencoder.make())
        for size in (1, 7, 15):
            found = np.concatenate([decoder(samples[i : i + size]) for i in range(0, 15, size)])
            assert np.abs(found.astype(int) - expected).max() <= 1


def test_batches_are_bounded_and_of_one_shape(monkeypatch):
    monkeypatch.setattr(decoding, "PIXELS", 3 * 8 * 12)
    shapes = []

    class Watched(FakeAutoencoder):
        def decode(self, x1):
            shapes.append(x1.shape)
            return super().decode(x1)

    fake = FakeAutoencoder.make()
    watched = jax.tree_util.register_dataclass(
        Watched, ["there", "back"], ["name", "fingerprint", "factor", "channels", "place", "scale", "shift"]
    )(fake.there, fake.back)
    samples = latents(50)
    pictures = Decoder(LATENT, ALL, watched)
    found = pictures(samples)
    assert shapes == [(24, *LATENT)]  # three pictures a device, traced once
    np.testing.assert_allclose(found, Decoder(LATENT, ONE, fake)(samples), atol=1)
    pictures(samples[:5])  # a smaller call is filled up
    assert len(shapes) == 1


def test_videos_of_latents():
    samples = latents(3, (5, *LATENT))
    decoder = Decoder((5, *LATENT), ALL, FakeAutoencoder.make())
    assert decoder.picture_shape == (5, 8, 12, 3)
    frames = Decoder(LATENT, ONE, FakeAutoencoder.make())(samples.reshape(15, *LATENT))
    np.testing.assert_allclose(decoder.checked(samples), frames.reshape(3, 5, 8, 12, 3), atol=1)


def test_encoding_and_back():
    smooth = np.repeat(np.repeat(np.random.default_rng(0).uniform(-0.4, 0.4, (11, 4, 6, 3)), 2, 1), 2, 2)
    smooth = smooth.astype(np.float32)
    decoder = Decoder(LATENT, ALL, FakeAutoencoder.make())
    encoded = decoder.encode(smooth)
    assert encoded.shape == (11, *LATENT)
    np.testing.assert_allclose(decoder(encoded), np.rint((np.tanh(smooth) + 1) * 127.5), atol=1)
    assert Decoder((8, 12, 3), ONE).encode(smooth) is smooth


def test_latents_without_their_autoencoder_are_refused():
    flag = r"latents.*--autoencoder=hf://stabilityai/sd-vae-ft-ema.*--autoencoder=taef2:DIR"
    with pytest.raises(ConfigError, match=flag):
        Decoder(LATENT, ONE)
    with pytest.raises(ConfigError, match=flag):
        open_autoencoder(LatentConfig(), LATENT)
    assert open_autoencoder(LatentConfig(), (8, 8, 3)) is None
    with pytest.raises(ConfigError, match=r"'fake': its latents have 4 channels, and the model's samples .* have 16"):
        Decoder((4, 6, 16), ONE, FakeAutoencoder.make())


@pytest.fixture
def taef2():
    directory = os.environ.get("ZIGMA_TEST_WEIGHTS")
    if not directory or not (Path(directory) / "taef2_decoder.pth").exists():
        pytest.skip("ZIGMA_TEST_WEIGHTS names no directory with taef2_decoder.pth")
    return LatentConfig(autoencoder=f"taef2:{directory}")


def test_real_weights_reconstruct(taef2):
    """A drawn face of smooth colours, through TAEF2 and back on two devices."""
    with pytest.raises(ConfigError, match="32 channels"):
        open_autoencoder(taef2, (8, 8, 4))
    network = open_autoencoder(taef2, (8, 8, 32))
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    picture = np.stack([np.sin(3 * x), np.cos(2 * y), (x**2 + y**2 < 0.5) * 1.0 - 0.5], -1).astype(np.float32)
    decoder = Decoder((8, 8, 32), make_mesh(1, jax.devices()[:2]), network)
    again = decoder.checked(decoder.encode(picture[None]))[0]
    error = np.square((picture + 1) * 127.5 - again).mean()
    assert 10 * np.log10(255**2 / error) > 25

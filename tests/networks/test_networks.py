"""The networks against their PyTorch originals on the same random weights and pictures; files that do not fit."""

import pickle
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.networks.random_weights import avatars, random_images, random_weights
from zigma_jax.interop.torch_file import UnsafeCheckpointError, write_torch
from zigma_jax.networks import NETWORKS, inception, layers, load_network

GOLDENS = dict(np.load(Path(__file__).parents[1] / "goldens" / "networks.npz"))
IMAGES = random_images(2, 40, 52, 3)
SIZES = ((2, 40, 52, 3), (1, 320, 304, 3), (1, 224, 224, 3))


def shapes(network: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original's tensors."""
    lines = (line.split() for line in GOLDENS[f"{network}/names"])
    return {name: tuple(map(int, shape)) for name, *shape in lines}


def close(features, *goldens: str):
    """To 1e-4 of the features' size; measured were 1e-6 to 2e-5."""
    for golden in goldens:
        expected = GOLDENS[golden]
        found = np.asarray(features[golden.split("/")[1]])
        assert found.shape == expected.shape
        assert found.dtype == np.float32
        error = np.abs(found - expected).max() / np.sqrt(np.square(expected).mean())
        assert error < 1e-4, (golden, error)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    write_torch(path, random_weights(shapes("inception")))
    return path


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_resizing(shape):
    images, key = jnp.asarray(random_images(*shape)), f"{shape[1]}x{shape[2]}"
    for name, resized in (
        ("tensorflow", inception.as_tensorflow(images)),
        ("pytorch_fid", inception.as_pytorch_fid(images)),
        ("bicubic", layers.bicubic(images.astype(jnp.float32), 224) / 128),
    ):
        expected = GOLDENS[f"resize/{name}/{key}"] / (128 if name == "bicubic" else 1)
        np.testing.assert_allclose(np.asarray(resized)[:, ::13, ::13], expected, atol=2e-5, err_msg=name)


def test_inception_as_tensorflow_prepares(inception_file):
    extractor = load_network("inception", inception_file)
    assert (extractor.name, extractor.dim) == ("inception", 2048)
    close(extractor(IMAGES), "inception/pool", "inception/logits", "inception/spatial")


def test_inception_as_pytorch_fid_prepares(inception_file):
    extractor = load_network("inception-pytorch-fid", inception_file)
    close(extractor(IMAGES), "inception-pytorch-fid/pool")
    apart = np.abs(GOLDENS["inception-pytorch-fid/pool"] - GOLDENS["inception/pool"]).max()
    assert apart > 1e-2  # the two ways to prepare pictures are not the same network


@pytest.mark.parametrize("name", ["dinov2-vits14", "dinov2-vits14-reg"])
def test_dinov2_of_transformers(name, tmp_path):
    save_file(random_weights(shapes(name)), tmp_path / "model.safetensors")
    extractor = load_network(name, tmp_path / "model.safetensors")
    assert (extractor.name, extractor.dim) == (name, 384)
    close(extractor(IMAGES), f"{name}/pool")


def test_dinov2_in_other_layouts(tmp_path):
    """The names that transformers 5 has in memory, and the original file with its own interpolation of positions."""
    weights = random_weights(shapes("dinov2-vits14"))
    renamed = {
        re.sub(r"attention\.(query|key|value)", lambda m: f"{m[1][0]}_proj", name).replace("output.dense", "o_proj"): w
        for name, w in weights.items()
    }
    assert "encoder.layer.0.attention.q_proj.weight" in renamed
    save_file(renamed, tmp_path / "memory.safetensors")
    features = load_network("dinov2-vits14", tmp_path / "memory.safetensors")(IMAGES)
    close(features, "dinov2-vits14/pool")

    write_torch(tmp_path / "original.pth", original_names(weights))
    features = load_network("dinov2-vits14", tmp_path / "original.pth")(IMAGES)
    close({"pool": features["pool"]}, "dinov2-vits14/pool/original")
    assert np.abs(GOLDENS["dinov2-vits14/pool/original"] - GOLDENS["dinov2-vits14/pool"]).max() > 1e-2


def original_names(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    renames = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.": "",
        "encoder.layer": "blocks",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "layernorm": "norm",
    }
    result = {}
    for name, tensor in weights.items():
        for old, new in renames.items():
            name = name.replace(old, new)
        if "attention.attention.query" in name:
            parts = [
                weights[f"encoder.layer.{name.split('.')[1]}.attention.attention.{part}.{name.split('.')[-1]}"]
                for part in ("query", "key", "value")
            ]
            result[name.replace("attention.attention.query", "attn.qkv")] = np.concatenate(parts)
        elif "attention.attention" not in name:
            result[name] = tensor
    return result


@pytest.fixture(scope="module")
def effnet():
    return load_network("effnet")


def test_effnet_with_packaged_weights(effnet):
    assert (effnet.name, effnet.dim) == ("effnet", 1280)
    close(effnet(avatars()), "effnet-published/pool", "effnet-published/logits")


def test_effnet_with_other_weights(effnet, tmp_path):
    write_torch(tmp_path / "a.pth", random_weights(shapes("effnet")))
    other = load_network("effnet", tmp_path / "a.pth")
    close(other(avatars()), "effnet/pool", "effnet/logits")
    assert other.fingerprint != effnet.fingerprint


def test_fingerprint_is_of_the_weights_not_of_the_file(effnet, tmp_path):
    weights = random_weights(shapes("effnet"))
    write_torch(tmp_path / "a.pth", weights)
    save_file(weights, tmp_path / "a.safetensors")
    first, second = (load_network("effnet", tmp_path / name) for name in ("a.pth", "a.safetensors"))
    assert first.fingerprint == second.fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first.fingerprint)
    # the published file's
    assert effnet.fingerprint == "5b0b2c2a4915b814479bfa16657809423c4111e69bde5f098cfac15aa871f425"


def test_a_picture_depends_on_nothing_else(effnet):
    """Alone, in a batch over eight devices, and inside a caller's jit with the network as an argument."""
    images = np.concatenate([avatars()[::-1], avatars()])
    mesh = jax.make_mesh((8,), ("data",))
    spread = jax.device_put(images, jax.NamedSharding(mesh, jax.P("data")))
    everywhere = jax.device_put(effnet, jax.NamedSharding(mesh, jax.P()))
    features = jax.jit(lambda network, x: network(x)["pool"])(everywhere, spread)
    assert len(features.sharding.device_set) == 8
    np.testing.assert_allclose(np.asarray(features)[4:], effnet(avatars())["pool"], atol=2e-5)


# -------------------- what does not fit


def test_unknown_network():
    with pytest.raises(ValueError, match=r"'vgg': there are effnet, inception"):
        load_network("vgg")


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("effnet", "transnetv2")])
def test_no_file(name, tmp_path):
    source = "pytorch-fid" if "inception" in name else "i3d_torchscript" if name == "i3d" else "facebook/dinov2"
    with pytest.raises(FileNotFoundError, match=source):
        load_network(name)
    with pytest.raises(FileNotFoundError, match=rf"a\.pth is not a file.*{source}"):
        load_network(name, tmp_path / "a.pth")


def test_no_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"zigma_jax\[eval\]"):
        load_network("effnet")


def test_tensors_that_do_not_fit(tmp_path):
    weights = random_weights(shapes("effnet"))
    del weights["_fc.bias"]
    weights["_bn1.bias"] = np.zeros(7, np.float32)
    weights["_bn0.bias"] = np.full(32, np.nan, np.float32)
    weights["_bn0.weight"] = np.ones(32, np.int32)
    weights["extra"] = np.zeros(2, np.float32)
    path = tmp_path / "a.pth"
    write_torch(path, weights)
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        load_network("effnet", path)
    for problem in (
        "5 tensors",
        "missing: _fc.bias (1000,)",
        "wrong shape: _bn1.bias is (7,), the network needs (1280,)",
        "not finite: _bn0.bias",
        "wrong dtype: _bn0.weight is int32",
        "unexpected: extra (2,)",
    ):
        assert problem in str(error.value)


def test_a_file_of_another_network(inception_file, tmp_path):
    with pytest.raises(ValueError, match=r"missing: _conv_stem.weight(.|\n)*more$"):
        load_network("effnet", inception_file)
    write_torch(tmp_path / "a.pth", {"model": {"a": np.zeros(2)}})
    with pytest.raises(ValueError, match="not a state dict"):
        load_network("effnet", tmp_path / "a.pth")
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.safetensors: not a readable safetensors file"):
        load_network("dinov2-vits14", tmp_path / "a.safetensors")


def test_nothing_in_a_file_is_executed(tmp_path):
    class Touch:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    header = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    (tmp_path / "a.pth").write_bytes(header + pickle.dumps(Touch(), 2))
    with pytest.raises(UnsafeCheckpointError, match="nothing was executed"):
        load_network("inception", tmp_path / "a.pth")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "dtype float32: effnet takes uint8"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"takes \(batch, height, width, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"shape \(0, 8, 8, 3\)"),
    ],
)
def test_other_pictures(effnet, images, message):
    with pytest.raises(ValueError, match=message):
        effnet(images)

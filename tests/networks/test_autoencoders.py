"""The autoencoders against their PyTorch originals; where their files lie; large pictures; what does not fit."""

import dataclasses
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from tests.networks.seeded import seeded
from zigma_jax.errors import ConfigError, WeightsError
from zigma_jax.interop.torch_file import read_torch, write_torch
from zigma_jax.networks import Autoencoder, autoencoder_geometry, load_autoencoder
from zigma_jax.networks.autoencoder_kl import AutoencoderKL, KLConfig
from zigma_jax.networks.autoencoder_layers import Layers, Norm, strips_of
from zigma_jax.networks.weight_file import WeightFile

GOLDENS = Path(__file__).parents[1] / "goldens"
ANSWERS = dict(np.load(GOLDENS / "autoencoders.npz"))
SMALL = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.4.2",
    "act_fn": "silu",
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 256,
}
NO_QUANT = SMALL | {
    "block_out_channels": [32, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 16,
    "layers_per_block": 2,
    "force_upcast": True,
    "mid_block_add_attention": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "latents_mean": None,
    "latents_std": None,
}
CONFIGS = {"vae_small": SMALL, "vae_noquant16": NO_QUANT}
SD = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
SD3 = SD | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
TAESD = {"_class_name": "AutoencoderTiny", "latent_channels": 4, "scaling_factor": 1.0, "act_fn": "relu"}
FILE = "diffusion_pytorch_model.safetensors"


def answers(case: str) -> dict[str, np.ndarray]:
    """Pictures and latents of a golden file, channels last."""
    with np.load(GOLDENS / f"{case}.npz") as file:
        return {name: np.moveaxis(file[name], 1, -1) for name in ("x", "mean", "logvar", "z", "y")}


def weights(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / f"{case}.npz") as file:
        named = zip(file["names"], file["shapes"], strict=True)
        return seeded({str(name): tuple(map(int, re.findall(r"\d+", shape))) for name, shape in named})


def listed(case: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a network in autoencoders.npz."""
    lines = (str(line).split() for line in ANSWERS[f"{case}/names"])
    return {name: tuple(map(int, shape)) for name, *shape in lines}


def write(directory: Path, config: dict | None, tensors: dict[str, np.ndarray], file: str = FILE) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, directory / file)
    return directory


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return weights("vae_small")


@pytest.fixture(scope="module")
def place(tensors, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("small"), SMALL, tensors)


@pytest.fixture(scope="module")
def small(place) -> Autoencoder:
    return load_autoencoder(place)


@pytest.fixture(scope="module")
def taef2() -> str:
    place = os.environ.get("ZIGMA_TEST_WEIGHTS", "")
    if not (Path(place) / "taef2_encoder.pth").is_file():
        pytest.skip("ZIGMA_TEST_WEIGHTS names no directory with taef2_encoder.pth and taef2_decoder.pth")
    return place


def error(found, expected) -> float:
    """The largest difference, relative to the RMS of what is expected."""
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    return float(np.abs(found - expected).max() / np.sqrt(np.square(expected).mean()))


def same(first: Autoencoder, second: Autoencoder) -> bool:
    """The same arrays in the same network."""
    trees = jax.tree.leaves(first.weights), jax.tree.leaves(second.weights)
    return first.graphdef == second.graphdef and all(np.array_equal(a, b) for a, b in zip(*trees, strict=True))


# -------------------- what diffusers and PyTorch answer


@pytest.mark.parametrize("case", CONFIGS)
def test_answers_of_diffusers(case, tmp_path):
    place, expected = write(tmp_path, CONFIGS[case], weights(case)), answers(case)
    ae = load_autoencoder(place)
    mean, logvar = ae.encode(expected["x"])
    assert logvar is not None
    found = {"mean": mean, "logvar": logvar, "y": ae.decode(ae.normalize(expected["z"]))}
    for name, values in found.items():
        assert error(values, expected[name]) < 2e-5, name  # measured: 7e-6
    assert (ae.factor, ae.channels) == autoencoder_geometry(place) == autoencoder_geometry("kl", place)
    assert (ae.name, ae.place) == ("kl", str(place))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "config"), [("sd", SD), ("sd3", SD3)])
def test_answers_of_the_large_ones(case, config, tmp_path):
    ae = load_autoencoder(write(tmp_path, config, seeded(listed(case))))
    mean, logvar = ae.encode(ANSWERS[f"{case}/x"])
    assert logvar is not None
    found = {"mean": mean, "logvar": logvar, "y": ae.decode(ae.normalize(ANSWERS[f"{case}/z"]))}
    for name, values in found.items():
        assert error(values, ANSWERS[f"{case}/{name}"]) < 5e-5, name


class Table(WeightFile):
    """Stands for a file of the names and shapes that diffusers writes, without the numbers."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.shapes, self.found = shapes, set()

    def __iter__(self):
        return iter(self.shapes)

    def shape(self, name: str):
        return self.shapes.get(name)

    def take(self, name: str, *shape: int) -> np.ndarray:
        assert self.shapes[name] == shape
        self.found.add(name)
        return np.broadcast_to(np.float32(0), shape)


@pytest.mark.parametrize(("case", "config"), [("sd", SD), ("sd3", SD3)])
def test_tensors_of_the_large_ones(case, config):
    table = Table(listed(case))
    AutoencoderKL(Layers(table, jnp.dtype("bfloat16"), None), KLConfig.read(config, "config.json"))
    assert table.found == set(table)


def test_answers_of_the_tiny_one_in_diffusers(tmp_path):
    """Its pictures are in [-1, 1] there too, and its file counts the decoder's layers from another."""
    weights = seeded(listed("taesd"))
    place = write(tmp_path, TAESD, weights)
    ae = load_autoencoder("taesd", place)
    mean, logvar = ae.encode(ANSWERS["taesd/x"])
    assert logvar is None
    assert error(mean, ANSWERS["taesd/mean"]) < 2e-5
    assert error(ae.decode(ANSWERS["taesd/z"]), ANSWERS["taesd/y"]) < 2e-5
    assert (ae.name, ae.scale, ae.shift) == ("taesd", (1.0,), (0.0,))
    alone = load_autoencoder(place)
    assert (alone.name, alone.fingerprint) == ("tiny", ae.fingerprint)
    assert autoencoder_geometry(place) == autoencoder_geometry("taesd") == (8, 4)

    # The original's files are two, with the same tensors.
    pair = {half: {} for half in ("encoder", "decoder")}
    for name, tensor in weights.items():
        half, _, number, rest = name.split(".", 3)
        pair[half][f"{int(number) + (half == 'decoder')}.{rest}"] = tensor
    for half, part in pair.items():
        write(tmp_path / "pair", None, part, f"taesd_{half}.safetensors")
    original = load_autoencoder("taesd", tmp_path / "pair")
    assert same(original, ae)
    assert original.fingerprint == ae.fingerprint


def psnr(found, images) -> np.ndarray:
    return -10 * np.log10(np.square(np.clip(found, -1, 1) - images).mean((1, 2, 3)) / 4)


@pytest.mark.slow
def test_taef2_with_its_published_weights(taef2):
    strip = np.asarray(Image.open(GOLDENS / "photographs.jpg"))
    images = np.stack(np.split(strip, 6, axis=1)).astype(np.float32) / 127.5 - 1
    ae = load_autoencoder("taef2", taef2)
    mean, logvar = ae.encode(images)
    assert logvar is None
    assert error(mean[:2, ::4, ::4], ANSWERS["taef2/mean"]) < 1e-4
    np.testing.assert_allclose(psnr(ae.decode(ae.normalize(mean)), images), ANSWERS["taef2/psnr"], atol=0.01)
    half = load_autoencoder(f"taef2:{taef2}", dtype="bfloat16")
    found = half.decode(half.normalize(half.encode(images)[0]))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(psnr(found, images), ANSWERS["taef2/psnr"], atol=0.2)  # measured: 0.10


def test_taef2_by_any_of_its_names(taef2):
    wanted = load_autoencoder("taef2", taef2)
    for place in (taef2, f"{taef2}/taef2_decoder.pth", f"taef2:{taef2}/taef2_encoder.pth"):
        found = load_autoencoder(place)
        assert (found.name, found.fingerprint, found.channels) == ("taef2", wanted.fingerprint, 32), place


def test_taef2_as_one_file(taef2, tmp_path):
    """As on the hub: one file, no config.json, and diffusers' numbers of the layers; or the original's."""
    wanted = load_autoencoder("taef2", taef2)
    halves = {half: read_torch(f"{taef2}/taef2_{half}.pth") for half in ("encoder", "decoder")}
    original = {f"{half}.{name}": tensor for half, file in halves.items() for name, tensor in file.items()}

    def renumbered(name: str) -> str:
        half, number, rest = name.split(".", 2)
        return f"{half}.layers.{int(number) - (half == 'decoder')}.{rest}"

    write(tmp_path / "hub", None, {renumbered(name): t for name, t in original.items()}, "taef2.safetensors")
    write(tmp_path / "own", None, original, "taef2.safetensors")
    for place in (f"taef2:{tmp_path}/hub", tmp_path / "hub", tmp_path / "hub/taef2.safetensors", tmp_path / "own"):
        found = load_autoencoder(place)
        assert (found.name, found.fingerprint) == ("taef2", wanted.fingerprint), place
        assert same(found, wanted)


# -------------------- units and shapes


def test_scale_and_shift(place, tmp_path):
    z = np.random.RandomState(0).standard_normal((1, 2, 2, 16)).astype(np.float32)
    ae = load_autoencoder(write(tmp_path, NO_QUANT, weights("vae_noquant16")))
    np.testing.assert_allclose(ae.normalize(z), (z - 0.0609) * 1.5305, rtol=1e-6)
    np.testing.assert_allclose(ae.denormalize(ae.normalize(z)), z, atol=1e-6)
    assert load_autoencoder(place).scale == (0.18215,)  # of a config.json from before the field
    other = load_autoencoder(place, scale=2.0, shift=(0.0, 1.0, 2.0, 3.0))
    np.testing.assert_allclose(other.normalize(np.ones((1, 4))), [[2.0, 0.0, -2.0, -4.0]])
    assert other.with_statistics(shift=0.5).scale == (2.0,)
    assert other.fingerprint == load_autoencoder(place).fingerprint
    for values in ({"scale": 0.0}, {"shift": (1.0, 2.0)}, {"scale": float("nan")}, {"scale": (1.0, 2.0, 3.0, 0.0)}):
        with pytest.raises(ConfigError, match=r"(scale|shift) = .*must be"):
            other.with_statistics(**values)


def test_statistics_in_the_configuration(tensors, tmp_path):
    config = SMALL | {"latents_mean": [0.0, 1.0, 2.0, 3.0], "latents_std": [1.0, 2.0, 4.0, 8.0], "scaling_factor": 2.0}
    ae = load_autoencoder(write(tmp_path, config, tensors))
    assert (ae.scale, ae.shift) == ((2.0, 1.0, 0.5, 0.25), (0.0, 1.0, 2.0, 3.0))


def test_videos_are_pictures_one_by_one(small):
    x1 = np.random.RandomState(0).standard_normal((2, 3, 4, 4, 4)).astype(np.float32)
    frames = small.decode(x1)
    assert frames.shape == (2, 3, 8, 8, 3)
    np.testing.assert_allclose(frames[:, 1], small.decode(x1[:, 1]), atol=1e-5)
    mean, logvar = small.encode(frames)
    assert mean.shape == logvar.shape == x1.shape


def test_bfloat16(place, small):
    expected, ae = answers("vae_small"), load_autoencoder(place, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(ae)} == {jnp.dtype("bfloat16"), jnp.dtype("float32")}  # norms
    found = ae.decode(ae.normalize(expected["z"]))
    assert 1e-4 < error(found, expected["y"]) < 0.1
    assert ae.fingerprint == small.fingerprint


@pytest.mark.parametrize("axes", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_over_devices(small, axes):
    """The results are sharded as the pictures are, equal to one device's, and no picture travels."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), (axes, axes))
    sharding = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    images = np.random.RandomState(0).uniform(-1, 1, (8, 16, 16, 3)).astype(np.float32)
    everywhere = jax.device_put(small, jax.NamedSharding(mesh, jax.P()))

    def there_and_back(ae, images):
        mean, _ = ae.encode(images)
        return mean, ae.decode(ae.normalize(mean))

    program = jax.jit(there_and_back).lower(everywhere, jax.device_put(images, sharding)).compile()
    found = program(everywhere, jax.device_put(images, sharding))
    for values, expected in zip(found, there_and_back(small, images), strict=True):
        assert values.sharding.is_equivalent_to(sharding, 4)
        np.testing.assert_allclose(values, expected, atol=2e-5)
    text = program.as_text()
    assert text is not None
    assert not re.search("all-gather|all-to-all|all-reduce|collective-permute", text)


# -------------------- large pictures


def in_strips(ae: Autoencoder, whole: int | None) -> Autoencoder:
    """The same network with another limit for what is computed in one piece."""
    network = nnx.merge(ae.graphdef, ae.weights)
    for _, module in nnx.iter_modules(network):
        if hasattr(module, "whole"):
            module.whole = whole  # pyright: ignore[reportAttributeAccessIssue]
    graphdef, weights = nnx.split(network)
    return dataclasses.replace(ae, graphdef=graphdef, weights=weights)


@pytest.mark.parametrize("case", ["vae_small", "taesd"])
def test_strips_are_the_whole_picture(case, small, tmp_path):
    """No seams: what is computed in strips of one, two and more rows is what is computed at once, attention too."""
    ae = small if case == "vae_small" else load_autoencoder(write(tmp_path, TAESD, seeded(listed("taesd"))))
    rng = np.random.RandomState(0)
    images = rng.uniform(-1, 1, (2, 48, 32, 3)).astype(np.float32)
    x1 = rng.standard_normal((2, 48 // ae.factor, 32 // ae.factor, 4)).astype(np.float32)
    whole, strips = in_strips(ae, None), in_strips(ae, 20_000)
    assert error(strips.decode(x1), np.asarray(whole.decode(x1))) < 1e-5
    for found, expected in zip(strips.encode(images), whole.encode(images), strict=True):
        assert expected is None or error(found, np.asarray(expected)) < 1e-5


def test_number_of_strips():
    assert strips_of(64, 1000, None) == strips_of(64, 1000, 1000) == 1
    assert strips_of(64, 1001, 1000) == 8
    assert strips_of(6, 10**9, 1000) == 6
    assert strips_of(1, 10**9, 1000) == 1
    assert strips_of(100, 3000, 1000) == 20


def test_norm_of_a_large_picture():
    """Sums of many numbers keep their digits: against float64, with a mean far from zero."""
    x = (5 + np.random.RandomState(0).standard_normal((1, 1024, 512, 4))).astype(np.float32)
    exact = (x - x.mean(dtype=np.float64)) / x.std(dtype=np.float64)
    for whole in (None, 1 << 16):
        norm = Norm(jnp.ones(4), jnp.zeros(4), 1, 1e-6, whole)
        found = jax.jit(lambda x, norm=norm: norm(x)(x))(x)
        np.testing.assert_allclose(found, exact, atol=2e-5)


def test_strips_need_less_memory(tensors, place):
    """What the compiled programs say they need beside weights, latents and picture."""
    needs = []
    for whole in (None, 1 << 17):
        ae = in_strips(load_autoencoder(place), whole)
        latents = jax.ShapeDtypeStruct((1, 128, 128, 4), jnp.float32)
        compiled = jax.jit(lambda ae, x1: ae.decode(x1)).lower(ae, latents).compile()
        account = compiled.memory_analysis()
        assert account is not None
        needs.append(account.temp_size_in_bytes)
    assert needs[1] < 0.6 * needs[0]


# -------------------- where the files lie, and what they are called


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def older(tensors: dict[str, np.ndarray], convolutions: bool) -> dict[str, np.ndarray]:
    result = {}
    for name, tensor in tensors.items():
        for new, old in OLD.items():
            if f".{new}." in name:
                name = name.replace(new, old)
                tensor = tensor[:, :, None, None] if convolutions and tensor.ndim == 2 else tensor
        result[name] = tensor
    return result


def original(tensors: dict[str, np.ndarray], levels: int) -> dict[str, np.ndarray]:
    """The names of the first program, whose attention is made of convolutions."""
    renames = (
        (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    )
    result = {}
    for name, tensor in tensors.items():
        if ".attentions." in name and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        result[name] = tensor
    return result


def test_older_names(small, tensors, tmp_path):
    for convolutions in (False, True):
        renamed = older(tensors, convolutions)
        assert "encoder.mid_block.attentions.0.query.weight" in renamed
        ae = load_autoencoder(write(tmp_path / str(convolutions), SMALL, renamed))
        assert same(ae, small)
    assert load_autoencoder(tmp_path / "False").fingerprint == small.fingerprint


def test_names_of_the_original_program(small, tensors, tmp_path):
    names = original(tensors, 2)
    assert "decoder.up.1.upsample.conv.weight" in names
    assert same(load_autoencoder(write(tmp_path / "ae", SMALL, names | {"loss.logvar": np.zeros(1)})), small)
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    model = {f"first_stage_model.{name}": tensor for name, tensor in names.items()}
    others = {"model.diffusion_model.out.weight": np.zeros(3, np.float32), "betas": np.zeros(3, np.float32)}
    write_torch(tmp_path / "sd.ckpt", {"state_dict": model | others, "global_step": 5})
    assert same(load_autoencoder(tmp_path / "sd.ckpt"), small)


def test_files_of_the_hub(small, place, tensors, tmp_path):
    write_torch(tmp_path / "diffusion_pytorch_model.bin", tensors)
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    write(tmp_path / "pipeline" / "vae", SMALL, tensors)
    write(tmp_path / "pipeline" / "unet", {"_class_name": "UNet2DConditionModel"}, {"a": np.zeros(2)})
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    places = (tmp_path, tmp_path / "pipeline", place / FILE, f"kl:{place}")
    for found in map(load_autoencoder, places):
        assert found.fingerprint == small.fingerprint
        assert found.name == "kl"
    assert load_autoencoder(tmp_path / "pipeline").place == str(tmp_path / "pipeline" / "vae")


def test_half_an_autoencoder(small, tensors, tmp_path):
    half = {name: tensor for name, tensor in tensors.items() if name.startswith(("decoder.", "post_quant_conv."))}
    ae = load_autoencoder(write(tmp_path, SMALL, half))
    x1 = np.ones((1, 2, 2, 4), np.float32)
    np.testing.assert_array_equal(ae.decode(x1), small.decode(x1))
    with pytest.raises(WeightsError, match="has a decoder only"):
        ae.encode(np.zeros((1, 4, 4, 3), np.float32))


# -------------------- what does not fit


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("_class_name", "AsymmetricAutoencoderKL", "this network is AutoencoderKL"),
        ("act_fn", "gelu", "must be silu or swish"),
        ("down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], "must be DownEncoderBlock2D for each"),
        ("block_out_channels", None, "must be a list of whole numbers"),
        ("block_out_channels", [30, 60], "must be multiples of norm_num_groups = 8"),
        ("latent_channels", "4", "must be a whole number"),
        ("in_channels", 4, "must be 3"),
        ("scaling_factor", 0, "must not be 0"),
        ("latents_std", [1.0, 2.0], "must be one number or 4"),
        ("use_quant_conv", "no", "must be true or false"),
    ],
)
def test_configurations_of_something_else(field, value, rule, place, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {field: value}))
    for load in (load_autoencoder, autoencoder_geometry):
        with pytest.raises(WeightsError, match=rf"config\.json of {re.escape(str(tmp_path))}: {field} = .*{rule}"):
            load(tmp_path)


def test_weights_of_something_else(place, tensors, tmp_path):
    with pytest.raises(WeightsError, match=r"does not fit(.|\n)*missing: encoder\.conv_in\.weight(.|\n)*unexpected"):
        load_autoencoder(write(tmp_path / "a", SMALL, {"layers.0.weight": np.zeros((2, 2), np.float32)}))
    with pytest.raises(WeightsError, match=r"missing: encoder\.down_blocks\.0\.resnets\.1(.|\n)*wrong shape: encoder"):
        load_autoencoder(write(tmp_path / "b", NO_QUANT | {"use_quant_conv": True}, tensors))
    with pytest.raises(WeightsError, match=r"unexpected: (post_)?quant_conv"):
        load_autoencoder(write(tmp_path / "c", SMALL | {"use_quant_conv": False}, tensors))
    with pytest.raises(WeightsError, match=r"latent_channels = 4: 'taesd3' has 16"):
        load_autoencoder("taesd3", write(tmp_path / "d", TAESD, {"a": np.zeros(2)}))
    with pytest.raises(WeightsError, match="_class_name = 'AutoencoderKL': this network has 'AutoencoderTiny'"):
        load_autoencoder("taesd", place)


def test_damaged_files(place, tmp_path):
    data = (place / FILE).read_bytes()
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    (tmp_path / FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match=rf"{re.escape(FILE)}: truncated"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json: not JSON"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"there is no config\.json"):
        load_autoencoder(tmp_path)


def test_places_that_are_none(tmp_path):
    with pytest.raises(WeightsError, match=f"{tmp_path}/x is not a file or directory"):
        load_autoencoder(tmp_path / "x")
    for weights in (None, ""):
        with pytest.raises(WeightsError, match="'taef2' needs a place of weights, as in taef2:DIRECTORY"):
            load_autoencoder("taef2", weights)
    with pytest.raises(WeightsError, match="there are no weights here"):
        load_autoencoder("taef2", tmp_path)
    with pytest.raises(ConfigError, match=r"no kind 'vqgan', there are kl, taesd, .*taef2"):
        load_autoencoder(f"vqgan:{tmp_path}")
    with pytest.raises(ConfigError, match="is a place, and weights = 'b' another"):
        load_autoencoder("a", "b")
    with pytest.raises(ConfigError, match="autoencoder is empty"):
        load_autoencoder("")
    with pytest.raises(ConfigError, match="dtype = 'float16': must be float32 or bfloat16"):
        load_autoencoder("taef2", tmp_path, dtype="float16")
    for kind in ("taesd", "taef2"):
        for half in ("encoder", "decoder"):
            write_torch(tmp_path / f"{kind}_{half}.pth", {})
    with pytest.raises(WeightsError, match=rf"holds the autoencoders taef2, taesd: say which, as in taef2:{tmp_path}"):
        load_autoencoder(tmp_path)


def test_pictures_and_latents_of_other_shapes(small):
    for images, message in (
        (np.zeros((1, 5, 4, 3), np.float32), "pictures of 5 × 4 pixels: kl needs sides that are multiples of 2"),
        (np.zeros((1, 4, 4, 3), np.uint8), "pictures have dtype uint8"),
        (np.zeros((4, 4, 3), np.float32), r"pictures have shape \(4, 4, 3\)"),
        (np.zeros((0, 4, 4, 3), np.float32), r"pictures have shape \(0, 4, 4, 3\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            small.encode(images)
    with pytest.raises(ConfigError, match=r"latents have shape \(1, 4, 4, 3\): kl takes \(batch, height, width, 4\)"):
        small.decode(np.zeros((1, 4, 4, 3), np.float32))

"""Checkpoints as other programs leave them: the same weights under any name, prefix, dtype and nesting."""

import argparse
import dataclasses

import ml_dtypes
import numpy as np
import pytest

from tests.golden import GOLDENS
from tests.interop.test_official import assert_same_model
from zigma_jax.errors import ConfigError, WeightsError
from zigma_jax.interop import load_official
from zigma_jax.interop.torch_file import read_torch, write_torch
from zigma_jax.interop.weights import flat_parameters, model_from_parameters
from zigma_jax.training.weights import is_model, load_weights, save_weights

FILE = GOLDENS / "zigzag2_text.pt"


@pytest.fixture(scope="module")
def whole():
    return read_torch(FILE)


@pytest.fixture(scope="module")
def model():
    return load_official(FILE)


def prefixed(tensors, prefix):
    return {prefix + name: value for name, value in tensors.items()}


def other(tensors):
    return {name: value + 1 for name, value in tensors.items()}


ARRANGED = {
    "module.": lambda ema: {"ema": prefixed(ema, "module.")},
    "_orig_mod.": lambda ema: {"ema": prefixed(ema, "_orig_mod."), "model": prefixed(other(ema), "_orig_mod.")},
    "both": lambda ema: {"ema": prefixed(ema, "module._orig_mod.")},
    "blocks compiled": lambda ema: {
        "ema": {name.replace("mixer.", "_orig_mod.mixer."): value for name, value in ema.items()}
    },
    "ema_model.": lambda ema: {
        **prefixed(ema, "ema_model."),
        **prefixed(other(ema), "online_model."),
        "step": np.ones(1),
    },
    "ema_model.module.": lambda ema: {"ema": prefixed(ema, "ema_model.module.")},
    "bare": lambda ema: ema,
    "bare module.": lambda ema: prefixed(ema, "module."),
    "bare model.": lambda ema: prefixed(ema, "model."),
    "state_dict": lambda ema: {"state_dict": ema, "epoch": 3},
    "lightning": lambda ema: {
        "state_dict": {
            **prefixed(other(ema), "model."),
            **prefixed(ema, "model_ema."),
            "vae.blocks.0.weight": np.ones(2),
        },
        "optimizer_states": [{}],
    },
    "timm": lambda ema: {"state_dict": other(ema), "state_dict_ema": ema},
    "nested": lambda ema: {"state": {"ema": {"module": ema}, "model": {"module": other(ema)}}},
    "half": lambda ema: {"ema": {name: value.astype("f2").astype("f4").astype("f2") for name, value in ema.items()}},
    "double": lambda ema: {"ema": {name: value.astype("f8") for name, value in ema.items()}},
    "bfloat16": lambda ema: {"ema": {name: value.astype(ml_dtypes.bfloat16) for name, value in ema.items()}},
}


@pytest.mark.parametrize("arranged", ARRANGED)
def test_the_same_weights_wherever_they_are(arranged, whole, model, tmp_path):
    write_torch(tmp_path / "a.pt", ARRANGED[arranged](whole["ema"]))
    loaded = load_official(tmp_path / "a.pt", config=model.cfg)
    if arranged in ("half", "bfloat16"):
        rounded = flat_parameters(model)["norm.scale"].astype({"half": "f2", "bfloat16": ml_dtypes.bfloat16}[arranged])
        np.testing.assert_array_equal(flat_parameters(loaded)["norm.scale"], rounded.astype("f4"))
    else:
        assert_same_model(loaded, model)


def test_no_averaged_weights(whole, model, tmp_path):
    write_torch(tmp_path / "a.pt", {"model": whole["ema"], "args": whole["args"]})
    with pytest.raises(WeightsError, match=r"no averaged weights .*'model'.*--weights=raw"):
        load_weights(tmp_path / "a.pt")
    assert_same_model(load_weights(tmp_path / "a.pt", "raw")[0], model)
    write_torch(tmp_path / "b.pt", {"ema": whole["ema"], "args": whole["args"]})
    with pytest.raises(WeightsError, match="--weights=ema"):
        load_weights(tmp_path / "b.pt", "raw")


def test_two_sets_that_nothing_tells_apart(whole, tmp_path):
    write_torch(tmp_path / "a.pt", {"first": whole["ema"], "second": other(whole["ema"])})
    with pytest.raises(WeightsError, match=r"2 sets of weights.*'first'.*'second'"):
        load_official(tmp_path / "a.pt")


def test_what_is_no_floating_point_tensor_is_named(whole, tmp_path):
    ema = dict(whole["ema"]) | {"norm_f.weight": np.ones(32, np.int64)}
    write_torch(tmp_path / "a.pt", {"ema": ema, "args": whole["args"]})
    with pytest.raises(WeightsError, match=r"norm_f.weight \(int64\)"):
        load_official(tmp_path / "a.pt")


@pytest.mark.parametrize("arguments", ["namespace", "flat", "hyper_parameters", "broken"])
def test_arguments_wherever_they_are(arguments, whole, model, tmp_path):
    params = whole["args"]["model"]["params"]
    extra = {
        "namespace": {"args": vars(argparse.Namespace(model={"params": params}))},
        "flat": {"args": params | {"lr": 1e-4}},
        "hyper_parameters": {"hyper_parameters": {"network": params}},
        "broken": {"args": params | {"depth": "many"}},
    }[arguments]
    write_torch(tmp_path / "a.pt", {"ema": whole["ema"], **extra})
    if arguments == "broken":
        with pytest.raises(WeightsError, match="arguments in the file are no architecture"):
            load_official(tmp_path / "a.pt")
    else:
        assert_same_model(load_official(tmp_path / "a.pt"), model)


def test_the_shapes_tell_the_architecture_or_what_they_leave_open(tmp_path):
    file = read_torch(GOLDENS / "sweep2_class.pt")
    write_torch(tmp_path / "a.pt", file["ema"])
    with pytest.raises(
        WeightsError, match=r"scan='sweep2'.*pos_embed='sincos', but not num_classes and null_class"
    ) as error:
        load_official(tmp_path / "a.pt")
    assert "sample_shape=" in str(error.value)
    uncond = {name: value for name, value in file["ema"].items() if not name.startswith("y_embedder")}
    write_torch(tmp_path / "b.pt", uncond)
    expected = load_official(GOLDENS / "sweep2_class.pt").cfg
    assert load_official(tmp_path / "b.pt").cfg == dataclasses.replace(expected, num_classes=0, null_class=False)
    write_torch(tmp_path / "c.pt", read_torch(FILE)["ema"])
    with pytest.raises(WeightsError, match=r"hidden_size=32.*but not scan .* and sample_shape"):
        load_official(tmp_path / "c.pt")


@pytest.mark.parametrize("name", ["a.pth", "a.PT", "a.ckpt", "a.bin", "weights", "a.safetensors"])
def test_the_content_counts_not_the_name(name, whole, model, tmp_path):
    (tmp_path / name).write_bytes(FILE.read_bytes())
    assert is_model(tmp_path / name)
    assert_same_model(load_weights(tmp_path / name)[0], model)


def test_suffixes_of_targets(model, tmp_path):
    for name in ("a.PT", "a.pth", "a.ckpt", "a.bin", "a.Safetensors"):
        save_weights(model, tmp_path / name)
        assert (tmp_path / name).is_file()
        assert_same_model(load_weights(tmp_path / name)[0], model)
    with pytest.raises(ConfigError, match=r"not as \.npz"):
        save_weights(model, tmp_path / "a.npz")
    with pytest.raises(ConfigError, match="exists"):
        save_weights(model, tmp_path / "a.PT")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"  <html><body>404</body></html>", "web page"),
        (b"hello", "not a file of torch.save"),
        (FILE.read_bytes()[:5000], "truncated"),
        (None, "no such file"),
        ("directory", "a directory"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(content, message, tmp_path):
    path = tmp_path / "a.pt"
    if content == "directory":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"a.pt.*{message}"):
        load_weights(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value, whole, model, tmp_path):
    ema = {name: array.copy() for name, array in whole["ema"].items()}
    ema["norm_f.weight"][3] = value
    write_torch(tmp_path / "a.pt", {**whole, "ema": ema})
    with pytest.raises(WeightsError, match=r"a.pt: weights are NaN or infinite in norm.scale \(1 of 32\)"):
        load_weights(tmp_path / "a.pt")
    ema["norm_f.weight"] = np.full(32, 1e300)  # a double that float32 cannot hold
    write_torch(tmp_path / "b.pt", {**whole, "ema": ema})
    with pytest.raises(WeightsError, match=r"norm.scale \(32 of 32\)"):
        load_weights(tmp_path / "b.pt")
    parameters = flat_parameters(load_official(FILE)) | {"norm.scale": np.full(32, value, np.float32)}
    broken = model_from_parameters(model.cfg, parameters, "broken")
    for name in ("c.safetensors",) if value == np.inf else ("directory",):
        save_weights(broken, tmp_path / name)
        with pytest.raises(WeightsError, match=r"norm.scale \(32 of 32\)"):
            load_weights(tmp_path / name)


def test_a_bare_file_with_the_architecture_of_a_configuration(whole, model, tmp_path):
    write_torch(tmp_path / "bare", whole["ema"])
    assert_same_model(load_weights(tmp_path / "bare", architecture=model.cfg)[0], model)
    # A file that tells its own is believed.
    assert load_weights(FILE, architecture=dataclasses.replace(model.cfg, scan="sweep1"))[0].cfg == model.cfg

"""Official checkpoints in and out: nothing lost, nothing executed, every misfit named."""

import dataclasses
import os
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zigma_jax as zj
from tests.golden import CHECKPOINTS, GOLDENS
from zigma_jax.interop import load_official, load_safetensors, save_official, save_safetensors
from zigma_jax.interop.torch_file import read_torch, write_torch
from zigma_jax.interop.weights import flat_parameters


def assert_same_model(a, b):
    assert a.cfg == b.cfg
    ours, theirs = flat_parameters(a), flat_parameters(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_official_to_ours_to_official(name, tmp_path):
    """The same tensors under the same names, to the bit; and what was saved is the model that was loaded."""
    before = read_torch(GOLDENS / f"{name}.pt")["ema"]
    model = load_official(GOLDENS / f"{name}.pt")
    save_official(model, tmp_path / "saved.pt")
    after = read_torch(tmp_path / "saved.pt")
    extra = {key for key in after["ema"] if key.startswith("pos_embed_list.")}  # the original never saves these
    assert after["ema"].keys() - extra == before.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after["ema"][key], value, err_msg=key)
        np.testing.assert_array_equal(after["model"][key], value, err_msg=key)
    assert_same_model(load_official(tmp_path / "saved.pt"), model)

    official = read_torch(GOLDENS / f"{name}.pt")["args"]["model"]["params"]
    ours = after["args"]["model"]["params"]
    assert {key: ours[key] for key in official if key != "n_context_token"} == {
        key: value for key, value in official.items() if key != "n_context_token"
    }


@pytest.mark.parametrize(
    "change",
    [
        {"scan": "hilbert8"},
        {"scan": "zigzag8", "sample_shape": (4, 6, 3), "pos_embed": "per_layer", "dtype": "bfloat16"},
        {"scan": "random3", "scan_seed": 5, "num_classes": 4, "null_class": True},
        {"scan": "zigzag3d5", "sample_shape": (2, 4, 4, 3), "temporal_pos_embed": True},
    ],
)
def test_models_the_original_lacks_round_trip_too(change, tmp_path):
    cfg = zj.ZigMaConfig(**{"sample_shape": (4, 4, 3), "hidden_size": 16, "depth": 2, **change})
    model = zj.ZigMa(cfg, rngs=nnx.Rngs(0))
    if cfg.pos_embed == "per_layer":
        model.blocks.pos_embed[...] = jnp.ones_like(model.blocks.pos_embed[...])
    save_official(model, tmp_path / "a.pt")
    assert_same_model(load_official(tmp_path / "a.pt"), model)
    save_safetensors(model, tmp_path / "a.safetensors")
    assert_same_model(load_safetensors(tmp_path / "a.safetensors"), model)


def test_a_bare_state_dict_needs_the_architecture(tmp_path):
    whole = read_torch(GOLDENS / "zigzag2_text.pt")
    write_torch(tmp_path / "bare.pt", whole["ema"])
    with pytest.raises(ValueError, match="says nothing usable of its architecture"):
        load_official(tmp_path / "bare.pt")
    model = load_official(GOLDENS / "zigzag2_text.pt")
    assert_same_model(load_official(tmp_path / "bare.pt", config=model.cfg), model)


def test_every_misfit_is_named(tmp_path):
    whole = read_torch(GOLDENS / "zigzag2_text.pt")
    cfg = load_official(GOLDENS / "zigzag2_text.pt").cfg
    del whole["ema"]["blocks.1.mixer.D"]
    whole["ema"]["blocks.0.mixer.bogus"] = np.zeros(3, np.float32)
    whole["ema"]["norm_f.weight"] = np.zeros(7, np.float32)
    write_torch(tmp_path / "broken.pt", whole)
    with pytest.raises(ValueError, match=r"\(3 tensors\)") as error:
        load_official(tmp_path / "broken.pt")
    for line in (
        "missing: blocks.1.mixer.D (64,)",
        "unexpected: blocks.0.mixer.bogus (3,)",
        "wrong shape: norm_f.weight is (7,), the model needs (32,)",
    ):
        assert line in str(error.value)
    with pytest.raises(ValueError, match=r"wrong shape: blocks.0.adaLN_modulation.1.weight is \(192, 32\)"):
        load_official(GOLDENS / "zigzag2_text.pt", config=dataclasses.replace(cfg, hidden_size=48))


def test_orders_that_the_file_does_not_hold_are_refused(tmp_path):
    whole = read_torch(GOLDENS / "zigzag2_text.pt")
    whole["args"]["model"]["params"]["scan_type"] = "randomN8"
    write_torch(tmp_path / "random.pt", whole)
    with pytest.raises(ValueError, match="was drawn when the model was built and is not in the file"):
        load_official(tmp_path / "random.pt")


def test_a_checkpoint_that_wants_to_run_something_is_refused(tmp_path):
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    path = tmp_path / "attack.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("attack/data.pkl", pickle.dumps({"ema": Attack()}, protocol=2))
        file.writestr("attack/version", "3\n")
        file.writestr("attack/byteorder", "little")
    with pytest.raises(ValueError, match="system"):
        load_official(path)
    assert not marker.exists()


def test_a_truncated_file_is_named(tmp_path):
    content = (GOLDENS / "zigzag2_text.pt").read_bytes()
    (tmp_path / "short.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"short.pt"):
        load_official(tmp_path / "short.pt")
    save_safetensors(load_official(GOLDENS / "zigzag2_text.pt"), tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_safetensors(tmp_path / "short.safetensors")

"""A backbone of one's own goes through the same programs; what it lacks is named."""

import sys

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models import own_backbone
from tests.training.tiny import FIELDS
from zigma_jax.errors import ConfigError, WeightsError
from zigma_jax.interop import load_safetensors
from zigma_jax.models.families import family_named, import_family
from zigma_jax.train import train
from zigma_jax.training.parse_config import default_config, from_dict, to_dict
from zigma_jax.training.weights import load_weights, save_weights

MIX = "tests.models.own_backbone:Mix"


def config_of(data_dir, **model):
    config = default_config(MIX)
    for name, value in (FIELDS | {"data.data_dir": str(data_dir), "train.steps": 2}).items():
        section, field = name.split(".")
        if section != "model" and field != "label_dropout":
            config[section][field] = value
    config.model.update(model)
    return from_dict(config)


def test_it_is_trained_and_comes_back(tmp_path):
    config = config_of(tmp_path, width=5)
    assert config.model == own_backbone.MixConfig(width=5)
    assert to_dict(config)["model"]["family"] == MIX
    assert train(config, tmp_path / "run")
    model, again = load_weights(tmp_path / "run")
    assert isinstance(model, own_backbone.Mix)
    assert again == config
    for name in ("a.safetensors", "a"):
        save_weights(model, tmp_path / name)
        other, _ = load_weights(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, nnx.state(other), nnx.state(model))
    with pytest.raises(ConfigError, match="there is no official form of it; write safetensors"):
        save_weights(model, tmp_path / "a.pt")


def test_a_file_does_not_get_code_imported(tmp_path, monkeypatch):
    model = own_backbone.Mix(own_backbone.MixConfig(), rngs=nnx.Rngs(0))
    save_weights(model, tmp_path / "a.safetensors")
    monkeypatch.delitem(sys.modules, "tests.models.own_backbone")
    with pytest.raises(WeightsError, match=rf"tests.models.own_backbone is not imported.*--family={MIX}"):
        load_safetensors(tmp_path / "a.safetensors")
    assert "tests.models.own_backbone" not in sys.modules
    import_family(MIX)
    assert type(load_safetensors(tmp_path / "a.safetensors")).__name__ == "Mix"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dit", r"family = 'dit': must be one of zigma, sit, or package.module:Class"),
        ("tests.models.own_backbone:NoNull", "has no method null_condition"),
        ("tests.models.own_backbone:NoConfig", "has no attribute Config, the dataclass that it is made from"),
        ("tests.models.own_backbone:PoorConfig", "its Config has no null_class, context_size"),
        ("tests.models.own_backbone:NoModule", r"must be an nnx\.Module"),
        ("tests.models.own_backbone:Nowhere", "tests.models.own_backbone has no class Nowhere"),
        ("no.such.module:Mix", r"family = 'no.such.module:Mix': cannot be imported"),
    ],
)
def test_what_a_backbone_lacks_is_named(name, message):
    with pytest.raises(ConfigError, match=message):
        import_family(name)


def test_its_fields_are_checked_as_any_others(tmp_path):
    family_named(MIX)
    config = default_config(MIX)
    config.data.image_size = 8
    with pytest.raises(AttributeError, match="widht"):
        config.model.widht = 3
    config.model.width = 3
    assert from_dict(config).model.width == 3
    fields = {"model": {"family": MIX, "widht": 3}, "data": {"image_size": 8}}
    with pytest.raises(ConfigError, match=r"config.model.widht: no such field; did you mean model.width\?"):
        from_dict(fields)

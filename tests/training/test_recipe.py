"""Options of the recipe: each changes what it says, and trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.training.tiny import tiny_config
from zigma_jax.errors import ConfigError
from zigma_jax.models.families import build
from zigma_jax.train import train
from zigma_jax.training.config import OptimizerConfig
from zigma_jax.training.state import block_matrices, make_optimizer, power_decay
from zigma_jax.training.weights import load_weights


def params_of_tiny():
    config = tiny_config("unused")
    return nnx.to_pure_dict(nnx.state(build(config.model, rngs=nnx.Rngs(0)), nnx.Param))


def test_muon_orthogonalises_each_layers_matrices_and_leaves_the_rest_to_adam():
    params = params_of_tiny()
    gradient = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    updates = {}
    for algorithm in ("adamw", "muon"):
        cfg = OptimizerConfig(algorithm=algorithm, learning_rate=1.0, warmup_steps=0, clip_norm=1e6)
        optimizer = make_optimizer(cfg, 10)
        updates[algorithm] = optimizer.update(gradient, optimizer.init(params), params)[0]
    chosen = block_matrices(params)
    assert chosen["blocks"]["mixer"]["in_proj"]["kernel"] is not None
    assert chosen["blocks"]["mixer"]["ssm"]["A_log"] is None
    assert chosen["out"]["kernel"] is None
    kernel = updates["muon"]["blocks"]["mixer"]["in_proj"]["kernel"]  # (layers, in, out)
    values = np.linalg.svd(np.asarray(kernel), compute_uv=False)
    assert values.max() / values.min() < 2, "each layer's singular values are nearly alike"
    rms = np.sqrt(np.mean(np.square(kernel)))
    assert 0.1 < rms < 0.3, "of the size of AdamW's updates, 0.2 of the learning rate"
    for path in (("out", "kernel"), ("patch_embed", "bias")):
        muon, adamw = (np.asarray(updates[name][path[0]][path[1]]) for name in ("muon", "adamw"))
        np.testing.assert_allclose(muon / adamw, (muon / adamw).flat[0], rtol=1e-3)  # larger: by Nesterov's momentum


@pytest.mark.slow
def test_a_run_with_muon_and_a_prediction_of_data_goes_on_to_the_bit(data_dir, tmp_path):
    changes = {"optimizer__algorithm": "muon", "interpolant__prediction": "data"}
    assert train(tiny_config(data_dir, **changes), tmp_path / "whole")
    whole, _ = load_weights(tmp_path / "whole", "raw")
    assert train(tiny_config(data_dir, **changes, train__steps=4), tmp_path / "part")
    assert train(tiny_config(data_dir, **changes), tmp_path / "part")
    again, _ = load_weights(tmp_path / "part", "raw")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(whole))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.state(whole)))


@pytest.mark.slow
def test_power_function_averages_have_the_length_they_are_called_by(data_dir, tmp_path):
    for length in (0.02, 0.1, 0.25):
        steps, weights = 4000, np.ones(1)
        decays = np.array([float(power_decay(length, step)) for step in range(1, steps + 1)])
        weights = (1 - decays) * np.append(np.cumprod(decays[::-1])[::-1][1:], 1)  # of each step in the last average
        places = np.arange(1, steps + 1) / steps
        mean = np.sum(weights * places)
        np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-6)
        np.testing.assert_allclose(np.sqrt(np.sum(weights * (places - mean) ** 2)), length, rtol=0.01)

    changes = {"train__ema_lengths": (0.05, 0.2), "checkpoint__every": 3}
    assert train(tiny_config(data_dir, **changes), tmp_path / "run")
    found = {name: nnx.state(load_weights(tmp_path / "run", name)[0]) for name in ("raw", "ema:0.05", "ema:0.20")}
    distances = [
        sum(
            float(jnp.sum((a - b) ** 2))
            for a, b in zip(*map(jax.tree.leaves, (found[name], found["raw"])), strict=True)
        )
        for name in ("ema:0.05", "ema:0.20")
    ]
    assert 0 < distances[0] < distances[1], "the longer one is farther from the last weights"
    with pytest.raises(ConfigError, match=r"weights = 'ema:0.1': the run keeps 0.05, 0.2"):
        load_weights(tmp_path / "run", "ema:0.1")
    with pytest.raises(ConfigError, match=r"weights = 'mean': must be 'ema', 'raw', or 'ema:0.1'"):
        load_weights(tmp_path / "run", "mean")
    with pytest.raises(ConfigError, match=r"train.ema_lengths = \(0.5,\): must be different shares"):
        tiny_config(data_dir, train__ema_lengths=(0.5,))

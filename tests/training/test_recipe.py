"""Options of the recipe: each changes what it says, and trains."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.training.tiny import tiny_config
from zigma_jax.models.families import build
from zigma_jax.train import train
from zigma_jax.training.config import OptimizerConfig
from zigma_jax.training.state import block_matrices, make_optimizer
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


def test_a_run_with_muon_and_a_prediction_of_data_goes_on_to_the_bit(data_dir, tmp_path):
    changes = {"optimizer__algorithm": "muon", "interpolant__prediction": "data"}
    assert train(tiny_config(data_dir, **changes), tmp_path / "whole")
    whole, _ = load_weights(tmp_path / "whole", "raw")
    assert train(tiny_config(data_dir, **changes, train__steps=4), tmp_path / "part")
    assert train(tiny_config(data_dir, **changes), tmp_path / "part")
    again, _ = load_weights(tmp_path / "part", "raw")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(whole))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.state(whole)))

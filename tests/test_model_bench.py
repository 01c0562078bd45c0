"""bench: cases that make sense, figures that are ratios of what was measured, a run that goes on."""

import json
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import programs
from zigma_jax.bench.cases import SIZES, Case, model_config
from zigma_jax.bench.measure import arguments, parameters, program
from zigma_jax.bench.report import crossing, make_table
from zigma_jax.errors import ConfigError

MODELS = ("zigma", "zigma/sweep1", "mamba2", "attention", "hybrid4", "sit")


@pytest.mark.parametrize("size", SIZES)
def test_models_of_a_size_have_about_as_many_parameters(size):
    counts = {model: parameters(Case(model, size, 256, 1, "forward")) for model in MODELS}
    assert max(counts.values()) < 1.15 * min(counts.values()), counts


@pytest.mark.parametrize("operation", ["forward", "gradient", "step", "sample"])
def test_a_programs_shapes_are_those_of_its_results(operation):
    function, shapes = program(Case("zigma", "s", 16, 2, operation))
    result = jax.eval_shape(function, *shapes)
    if operation in ("forward", "sample"):
        assert result.shape == shapes[1].shape == (2, 8, 8, 4)
    if operation == "step":  # the next state, to go on with
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), result) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), shapes[0]
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "rnn"}, "'rnn': no such backbone"),
        ({"model": "sit/zigzag8"}, "'sit/zigzag8': an order makes no difference to sit"),
        ({"model": "zigma/zigzag9"}, "k of zigzag<k> is 1 … 8"),
        ({"size": "xxl"}, "size = 'xxl': must be one of s, b, l"),
        ({"tokens": 1000}, "tokens = 1000: must be a square"),
        ({"operation": "backward"}, "operation = 'backward': must be one of forward"),
    ],
)
def test_what_cannot_be_measured(changes, message):
    fields = {"model": "zigma", "size": "s", "tokens": 256, "batch": 1, "operation": "forward"} | changes
    with pytest.raises(ConfigError, match=message):
        Case(**fields)


def record(model, tokens, seconds, peak, operation="forward"):
    case = {"model": model, "size": "s", "tokens": tokens, "batch": 1, "operation": operation, "remat": "default"}
    measured = {"seconds": seconds, "peak_bytes": peak * 2**30, "account_bytes": 2**30, "parameters": 32_100_000}
    return case | {"dtype": "float32"} | measured


def test_the_table_and_where_lines_cross():
    records = [record("zigma", 256, 2.0, 1), record("sit", 256, 1.0, 2), record("zigma", 1024, 8.0, 1)]
    records += [record("sit", 1024, 16.0, 8), {**record("mamba2", 1024, 0, 0), "error": "killed by signal 9"}]
    table = make_table(records)
    assert "| 256 × 1 | zigma | 32.1 M | default | 2 | 2.00 | 1.00 | 0.50 | 1.00 |" in table
    assert "| 1,024 × 1 | zigma | 32.1 M | default | 8 | 0.50 | 1.00 | 0.12 | 1.00 |" in table
    assert "| 1,024 × 1 | mamba2 | killed by signal 9 |" in table
    assert crossing(records, "zigma", "seconds", "forward") == pytest.approx(512)  # half way, in logarithms
    assert crossing(records, "zigma", "peak_bytes", "forward") is None  # it is always leaner
    assert crossing(records, "zigma", "seconds", "gradient") is None


@pytest.mark.slow
def test_a_run_leaves_its_files_and_goes_on(tmp_path):
    command = ["zigma_jax.bench", "--models=attention,sit", "--tokens=16", "--tokens_per_batch=16", "--remat=none"]
    command += ["--operations=forward", f"--workdir={tmp_path}"]
    code, output = programs.run(*command)
    assert code == 0, output
    records = json.loads((tmp_path / "results.json").read_text())
    assert [r["model"] for r in records] == ["attention", "sit"]
    assert all(r["seconds"] > 0 and r["peak_bytes"] > r["temporary_bytes"] for r in records)
    assert (tmp_path / "table.md").read_text().count("| 16 × 1 |") == 2
    assert (tmp_path / "curves.png").exists()
    code, output = programs.run(*command, "--minutes=0")  # nothing is missing
    assert code == 0, output
    assert json.loads((tmp_path / "results.json").read_text()) == records


@pytest.mark.skipif(find_spec("torch") is None, reason="the group torch is not installed")
def test_pytorchs_transformer_is_ours():
    import torch  # pyright: ignore[reportMissingImports]

    from zigma_jax.bench.torch_sit import SiT
    from zigma_jax.interop.official import official_tensors
    from zigma_jax.models.families import build

    case = Case("torch_sit", "s", 16, 2, "forward")
    cfg = model_config(case)
    state = arguments((nnx.state(nnx.eval_shape(lambda: build(cfg, rngs=nnx.Rngs(0))), nnx.Param),))[0]
    ours = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: build(cfg, rngs=nnx.Rngs(0)))), state)
    theirs = SiT(cfg)
    theirs.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in official_tensors(ours).items()})
    x, t = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32), np.array([0.2, 0.8], np.float32)
    found = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(t)).detach().numpy()
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), ours(jnp.asarray(x), jnp.asarray(t)), rtol=1e-3, atol=1e-4)

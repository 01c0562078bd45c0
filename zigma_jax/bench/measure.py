"""One case, measured in a process of its own: `python -m zigma_jax.bench.measure '{"model": "sit", …}'` prints JSON.

A process of its own has a peak of memory of its own, and takes nothing with it when it runs out.
"""

import contextlib
import json
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zigma_jax.bench.cases import Case, model_config
from zigma_jax.interpolant import Interpolant, sample_ode
from zigma_jax.models.families import build
from zigma_jax.training.config import OptimizerConfig, RunConfig, TrainConfig
from zigma_jax.training.state import initial_state, make_optimizer
from zigma_jax.training.step import make_update

_SECONDS, _REPEATS = 10.0, 3  # at least so long and so often, after one run that is not counted


def program(case: Case) -> tuple[Callable, tuple[Any, ...]]:
    """A jittable function, and its arguments as shapes.

    The function gives a small result that depends on all that was computed, except "step", which gives the next state.
    """
    cfg = model_config(case)
    abstract = nnx.eval_shape(lambda: build(cfg, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.graphdef(abstract), nnx.to_pure_dict(nnx.state(abstract, nnx.Param))
    x = jax.ShapeDtypeStruct((case.batch, *cfg.sample_shape), jnp.float32)
    interpolant = Interpolant()

    def loss(params, x):
        model = nnx.merge(graphdef, params)
        keys = jax.random.split(jax.random.key(0), case.batch)
        return jnp.mean(interpolant.loss(lambda x, t: model(x, t), x, keys))

    match case.operation:
        case "forward":
            times = jnp.linspace(0.1, 0.9, case.batch)
            return lambda params, x: nnx.merge(graphdef, params)(x, times), (params, x)
        case "gradient":
            return lambda params, x: jax.value_and_grad(loss)(params, x), (params, x)
        case "sample":

            def sample(params, x):
                model = nnx.merge(graphdef, params)
                return sample_ode(interpolant, lambda x, t: model(x, t), x, method="heun", steps=9)

            return sample, (params, x)
    config = RunConfig(model=cfg, train=TrainConfig(batch_size=case.batch, steps=10))
    optimizer = make_optimizer(OptimizerConfig(), 10)
    update = make_update(graphdef, optimizer, config)
    state = jax.eval_shape(lambda params: initial_state(params, optimizer), params)
    return lambda state, x: update(state, {"image": x}, 0)[0], (state, x)


def accounted(compiled: Any) -> dict[str, Any]:
    """What XLA says of a compiled program: bytes of memory, operations, and bytes moved."""
    analysis, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return {
        "account_bytes": analysis.temp_size_in_bytes + held,
        "temporary_bytes": analysis.temp_size_in_bytes,
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
    }


def parameters(case: Case) -> int:
    """Their number."""
    abstract = nnx.eval_shape(lambda: build(model_config(case), rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Param)))


def arguments(shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers of these shapes, small enough for every model: drawn parameters, integers zero."""

    def draw(i, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return 0.02 * jax.random.normal(jax.random.key(i), leaf.shape, leaf.dtype)

    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([draw(i, leaf) for i, leaf in enumerate(leaves)])


def measure(case: Case) -> dict[str, Any]:
    """Seconds of the fastest run, peak of memory while it runs, XLA's account, and seconds to compile."""
    function, shapes = program(case)
    started = time.perf_counter()
    donated = (0,) if case.operation == "step" else ()
    compiled = jax.jit(function, donate_argnums=donated).lower(*shapes).compile()
    compile_seconds = time.perf_counter() - started
    first, x = jax.block_until_ready(arguments(shapes))

    def run():
        nonlocal first
        result = jax.block_until_ready(compiled(first, x))
        first = result if donated else first

    found = timed(run)
    return found | accounted(compiled) | {"parameters": parameters(case), "compile_seconds": compile_seconds}


def timed(run: Callable[[], object]) -> dict[str, Any]:
    """Seconds of the fastest run after the first, and the peak of memory in bytes.

    The peak is the device's where it keeps count, else the process's; on Linux that of these runs alone.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the process's peak starts anew
    seconds = []
    while len(seconds) < 1 + _REPEATS or sum(seconds[1:]) < _SECONDS:
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > 6 * _SECONDS and len(seconds) > 1:  # of very long ones, one beside the first
            break
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    status = Path("/proc/self/status")
    high = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    process = 1024 * (int(high[1]) if high else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    peak = stats["peak_bytes_in_use"] if stats else process
    return {"seconds": min(seconds[1:]), "runs": len(seconds) - 1, "peak_bytes": peak}


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    if case.model == "torch_sit":
        from zigma_jax.bench import torch_sit

        found = torch_sit.measure(case)
    else:
        found = measure(case)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

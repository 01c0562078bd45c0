"""What XLA says of a case on a device that is not here: memory, operations and bytes, never a time.

`python -m zigma_jax.bench.account h100 '{"model": "sit", …}'` prints JSON. The compiler runs in full for the device; it
needs the extra of its platform (`cuda13`, or `tpu`), and no such device.
"""

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

TARGETS = {  # platform, topology, environment, and what decides which kernels are taken
    "h100": ("cuda", "1x1x1", {}, ("NVIDIA H100 80GB HBM3", "9.0")),
    "v5e": ("tpu", "v5e:2x2", {"TPU_ACCELERATOR_TYPE": "v5litepod-4"}, ("TPU v5 lite", "")),
    "v6e": ("tpu", "v6e:2x2", {"TPU_ACCELERATOR_TYPE": "v6e-4"}, ("TPU v6 lite", "")),
}


def environment(target: str) -> dict[str, str]:
    """What the process that compiles for `target` has to be started with."""
    platform, _, extra, _ = TARGETS[target]
    common = {"JAX_PLATFORMS": "cpu"}
    if platform == "cuda":
        # Nothing can be timed on a device that is not there; and a host without NVIDIA's driver is no reason to stop.
        return common | {"XLA_FLAGS": "--xla_gpu_autotune_level=0", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"} | extra
    return common | {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"} | extra


def account(case: Any, target: str) -> dict[str, Any]:
    """Bytes and operations of the compiled program. In a process that was started with `environment(target)`."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding
    from zigma_kernels.dispatch import compiling_for

    from zigma_jax.bench.measure import accounted, parameters, program

    platform, name, _, (kind, capability) = TARGETS[target]
    if platform == "cuda":
        text = (Path(__file__).parent / "targets" / f"{target}.txtpb").read_text()
        topology = topologies.get_topology_desc(target, platform="cuda", target_config=text, topology=name)
    else:
        topology = topologies.get_topology_desc(name, platform=platform)
    device = SingleDeviceSharding(topology.devices[0])
    function, shapes = program(case)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    donated = (0,) if case.operation == "step" else ()
    with compiling_for(types.SimpleNamespace(device_kind=kind, compute_capability=capability, platform=platform)):
        compiled = jax.jit(function, donate_argnums=donated).lower(*shapes).compile()
    return accounted(compiled) | {"parameters": parameters(case)}


if __name__ == "__main__":
    os.environ.update(environment(sys.argv[1]))
    from zigma_jax.bench.cases import Case

    print(json.dumps(account(Case(**json.loads(sys.argv[2])), sys.argv[1])))

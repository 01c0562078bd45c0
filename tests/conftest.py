"""Test-wide set-up: shapes are checked at run time, eight CPU devices are emulated, programs are compiled once."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of what the tests do, so it is asked to optimise less, on a shorter way through XLA's emitters, and
# what one worker compiled serves all.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters --xla_cpu_parallel_codegen_split_count=1",
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="zigma_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Of the programs that tests start.
os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(__file__).parents[1] / room) for room in ("", "kernels"))

from jaxtyping import install_import_hook

# Every annotated public function of the packages is checked against its shapes while the tests run.
install_import_hook(["zigma_jax", "zigma_kernels"], "beartype.beartype")


def pytest_collection_finish():
    """Tracing makes many objects; the collector need not look at all that was imported again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)

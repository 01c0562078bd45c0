"""Runs the Triton kernels of the selective scan in Triton's interpreter, on the CPU, against the reference.

    python tests/kernels/interpret_triton.py [case …]

Prints the largest relative error of each output and gradient, and exits with 1 if one is over its tolerance.
A process of its own, since Triton decides when it is imported whether to interpret.
"""

import os
import sys
import types

os.environ["TRITON_INTERPRET"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from test_selective_scan import outputs_and_gradients, tolerance, truth
from triton.runtime import interpreter  # pyright: ignore[reportMissingImports]
from zigma_kernels import GridPath
from zigma_kernels.selective_scan.cases import CASES, Case

OTHERS = (
    Case("two blocks of channels", 1, 35, 70, 3, order=GridPath.zigzag((5, 7), (1, 0)), initial_state=True),
    Case("segments in raster order", 2, 20, 4, 3, order=GridPath.raster((2, 10), (1,)), initial_state=True),
)
TESTED = {case.name: case for case in (*OTHERS, *CASES.values()) if not case.bench}


class HostArray:
    """What the interpreter asks of a torch tensor, of a NumPy array."""

    def __init__(self, x):
        self.x, self.dtype = x, x.dtype

    def data_ptr(self):
        return self.x.ctypes.data

    def itself(self, *args, **kwargs):
        return self

    untyped_storage = new_empty = cpu = set_ = copy_ = size = stride = storage_offset = itself


def interpret(*inputs, kernel, out_shape, grid, name, num_warps, compute_capability, **options):
    """In place of `jax_triton.triton_call`."""

    def run(*inputs):
        inputs = [np.array(x) for x in inputs]
        outputs = [np.full(x.shape, np.nan, x.dtype) for x in out_shape]  # what is not written shows
        arrays, scalars = [HostArray(x) for x in inputs[:-2]], [int(x) for x in inputs[-2:]]
        kernel[grid](*arrays, *scalars, *map(HostArray, outputs), **options)
        return outputs

    return jax.pure_callback(run, out_shape, *inputs)


def patch_lang_tensor(tensor, scope, original=interpreter._patch_lang_tensor):
    """Triton 3.6 converts NumPy arrays of shape (1,) to int, which NumPy 2.5 refuses."""
    original(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def main():
    interpreter._patch_lang_tensor = patch_lang_tensor
    sys.modules["jax_triton"] = types.SimpleNamespace(triton_call=interpret)  # type: ignore
    failed = False
    for name in sys.argv[1:] or TESTED:
        case = TESTED[name]
        found = outputs_and_gradients(case.arguments(), "triton", case.order)
        allowed = tolerance(case.dtype, case.length)
        print(f"{name}: tolerance {allowed:.1e}")
        for key, want in truth(case).items():
            error = np.abs(np.asarray(found[key], np.float64) - want).max() / max(np.abs(want).max(), 1e-30)
            failed |= not error <= allowed
            print(f"  {key}: {error:.1e}")
    sys.exit(failed)


if __name__ == "__main__":
    main()

"""The selective scan's authors' CUDA kernel, timed as ours are. It needs PyTorch and mamba_ssm."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from zigma_kernels.bench import timing
from zigma_kernels.selective_scan import selective_scan


def row(case: Any, repeats: int) -> dict[str, Any]:
    """A row of the bench's table; `y differs` is the largest difference from `xla`, of y's largest entry."""
    import torch  # pyright: ignore[reportMissingImports]
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore[reportMissingImports]

    if case.order is not None:
        raise NotImplementedError("raster order only")
    args = timing.drawn(tuple((name, x.shape, x.dtype) for name, x in case.shapes.items()))
    expected = np.asarray(selective_scan(**args, implementation="xla").astype(jnp.float32))

    def tensor(x):
        """As the kernel has them: tokens last."""
        own = torch.from_numpy(np.array(x, np.float32)).cuda().to(getattr(torch, x.dtype.name))
        return (own.transpose(1, 2).contiguous() if own.ndim == 3 else own).requires_grad_()

    u, dt, A, B, C, D, z, dt_bias = (tensor(args[name]) for name in ("u", "dt", "A", "B", "C", "D", "z", "dt_bias"))
    inputs = u, dt, A, B, C, D, z, dt_bias

    def scan():
        return selective_scan_fn(u, dt, A, B, C, D, z=z, delta_bias=dt_bias, delta_softplus=True)

    def forward():
        with torch.no_grad():
            return scan()

    def both():
        return torch.autograd.grad(scan(), inputs, dy)

    def wait(_):
        torch.cuda.synchronize()

    dy = forward()
    found = dy.float().transpose(1, 2).cpu().numpy()
    forward_ms, _ = timing.milliseconds(forward, repeats, wait)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both_ms, _ = timing.milliseconds(both, repeats, wait)
    results = sum(x.numel() * x.element_size() for x in (dy, *inputs))
    extra = max(0, torch.cuda.max_memory_allocated() - before - results)
    return timing.identity(case, "official (PyTorch)") | {
        "forward, ms": forward_ms,
        "forward + backward, ms": both_ms,
        "extra memory, MiB": extra / 2**20,
        "x input": extra / (u.numel() * u.element_size()),
        "y differs": float(np.abs(found - expected).max() / np.abs(expected).max()),
    }

"""What a training step costs: floating-point operations by a formula, and what devices can do at most."""

import math
from typing import Any

import jax

from zigma_jax.training.state import Params

_A_SAMPLE = {"time_embed", "modulation", "modulation_out", "class_embed"}  # what sees a sample once, not its tokens
_SCAN = 6  # operations a state and token: step · A, decay · h, (step · u) · B, their sum, and C · h summed

PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
"""Operations a second of dense bfloat16 products, by the beginning of `device_kind`, as the makers' data sheets say."""


def forward_flops(cfg: Any, params: Params, text_tokens: int = 0) -> float:
    """Floating-point operations of one sample's way through a model, a multiplication and an addition being two.

    The formula: 2 · elements of each linear layer's kernel · rows that go through it (the tokens; 1 for what a sample
    has once; `text_tokens` for what text goes through); 2 · taps a convolution's channel and token; 6 a state and token
    of a scan; 4 · keys · width a token of attention. Norms, activations and sums are not counted.

    cfg: the model's. params: its parameters, arrays or their shapes.
    """
    total, length = 0.0, cfg.num_tokens
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(getattr(entry, "key", entry)) for entry in path]
        size = math.prod(leaf.shape)
        if names[-1] == "kernel":
            total += 2 * size * _rows(names, length, text_tokens)
        elif names[-1].startswith("conv_kernel"):
            total += 2 * size * length
        elif names[-1] == "A_log":
            scanned = size if "ssm" in names or "ssm_reverse" in names else _states(cfg, leaf)
            total += _SCAN * scanned * length
    if any("qkv" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)):
        total += 4 * length**2 * cfg.hidden_size * _attending(cfg)
    if text_tokens:
        total += 4 * length * text_tokens * 512 * cfg.depth  # 8 heads of 64
    return total


def training_flops(cfg: Any, params: Params, text_tokens: int = 0) -> float:
    """Of one sample in a training step: three times its forward pass. What is computed again does not count."""
    return 3 * forward_flops(cfg, params, text_tokens)


def peak_flops(kind: str) -> float | None:
    """Of a device by its `device_kind`, in bfloat16; None if it is not known here."""
    return next((PEAKS[name] for name in sorted(PEAKS, key=len, reverse=True) if kind.startswith(name)), None)


def peak_memory() -> int | None:
    """Bytes that the fullest of this process's devices has held at once; None where the device does not say."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    found = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return max(found, default=None)


def _rows(names: list[str], length: int, text_tokens: int) -> int:
    if _A_SAMPLE & {*names}:
        return 1
    of_text = "context_embed" in names or ("attention" in names and names[-2] in ("key", "value"))
    return text_tokens if of_text else length


def _states(cfg: Any, leaf: Any) -> int:
    """Of a scan with one decay a head, whose A_log does not tell the number of states."""
    return leaf.shape[0] * cfg.inner_size * cfg.state_size


def _attending(cfg: Any) -> int:
    """Layers whose tokens attend to each other."""
    attends = getattr(cfg, "attends", None)
    return cfg.depth if attends is None else sum(attends(layer) for layer in range(cfg.depth))


class CompileTime:
    """Seconds that JAX has traced and compiled in this process since the last call."""

    def __init__(self):
        self._seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self._seconds += duration_secs

    def __call__(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds

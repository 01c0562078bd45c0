"""The same transformer in PyTorch, eager, as its users run it: another library's figure beside ours.

Its own group of requirements has torch: `uv run --group torch python -m zigma_jax.bench`. Names are SiT's, so that the
weights of ours fit (`zigma_jax.interop.official.official_tensors`).
"""

# pyright: reportMissingImports=false
import math
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from zigma_jax.bench.cases import Case, model_config
from zigma_jax.bench.measure import timed
from zigma_jax.errors import ConfigError
from zigma_jax.models.embeddings import sincos_table
from zigma_jax.models.sit import SiTConfig


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, cfg: SiTConfig):
        super().__init__()
        width = cfg.hidden_size
        self.attn, self.mlp = Attention(width, cfg.num_heads), Mlp(width, cfg.mlp_size)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate * self.attn(_norm(x) * (1 + scale) + shift)
        return x + gate2 * self.mlp(_norm(x) * (1 + scale2) + shift2)


class Last(nn.Module):
    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(_norm(x) * (1 + scale) + shift)


class SiT(nn.Module):
    """Unconditional; x (b, c, h, w), t (b,)."""

    def __init__(self, cfg: SiTConfig, remat: bool = False):
        super().__init__()
        width, patch = cfg.hidden_size, cfg.patch_size
        self.patch, self.remat = patch, remat
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(cfg.channels, width, patch, patch)})
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.register_parameter("pos_embed", nn.Parameter(torch.from_numpy(sincos_table(cfg.grid, width))[None], False))
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))
        self.final_layer = Last(width, patch * patch * cfg.channels)

    def forward(self, x, t):
        tokens = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        frequency = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
        angle = t[:, None] * frequency
        c = self.t_embedder["mlp"](torch.cat([angle.cos(), angle.sin()], dim=-1))
        for block in self.blocks:
            if self.remat:
                tokens = torch.utils.checkpoint.checkpoint(block, tokens, c, use_reentrant=False)
            else:
                tokens = block(tokens, c)
        side = x.shape[2] // self.patch
        values = self.final_layer(tokens, c).unflatten(1, (side, side)).unflatten(-1, (self.patch, self.patch, -1))
        return values.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def _norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def measure(case: Case) -> dict[str, Any]:
    """As `zigma_jax.bench.measure`, on the CPU."""
    if case.operation not in ("forward", "gradient") or case.dtype != "float32":
        raise ConfigError(f"torch_sit is measured forward and in its gradient, in float32: not {case.key!r}")
    cfg = model_config(case)
    torch.manual_seed(0)
    model = SiT(cfg, remat=case.remat == "block")
    x = torch.randn(case.batch, cfg.channels, *cfg.sample_shape[:2])
    t = torch.linspace(0.1, 0.9, case.batch)

    def run():
        if case.operation == "forward":
            with torch.no_grad():
                return model(x, t)
        model.zero_grad(set_to_none=True)
        return torch.mean((model(x, t) - x) ** 2).backward()

    return timed(run) | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }

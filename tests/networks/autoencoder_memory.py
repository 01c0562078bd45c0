"""What Stable Diffusion's autoencoder needs for one large picture, with random weights of the published shapes.

    python -m tests.networks.autoencoder_memory decode 1024 [--whole] [--dtype=bfloat16] [--account] [--save=FILE]

prints what the compiled program says it needs beside weights, input and output, then runs it and prints the process's
peak and the time. --whole computes every layer in one piece, as the strips are to be compared with: --save keeps the
result, and --against compares with one that was kept. --account only compiles.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from tests.networks.seeded import seeded
from zigma_jax.networks import autoencoder

GOLDENS = Path(__file__).parents[1] / "goldens"
CONFIG = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
GIB = 1 << 30


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["decode", "encode"])
    parser.add_argument("side", type=int)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--account", action="store_true")
    parser.add_argument("--save")
    parser.add_argument("--against")
    args = parser.parse_args()

    if args.whole:
        autoencoder.WHOLE = 1 << 62
    lines = (str(line).split() for line in np.load(GOLDENS / "autoencoders.npz")["sd/names"])
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(CONFIG))
        tensors = seeded({name: tuple(map(int, shape)) for name, *shape in lines})
        save_file(tensors, Path(directory) / "diffusion_pytorch_model.safetensors")
        del tensors
        ae = autoencoder.load_autoencoder(directory, dtype=args.dtype)

    rng = np.random.RandomState(0)
    if args.what == "decode":
        x = rng.standard_normal((1, args.side // 8, args.side // 8, 4)).astype(np.float32)
        program = jax.jit(lambda ae, x: ae.decode(x))
    else:
        x = rng.uniform(-1, 1, (1, args.side, args.side, 3)).astype(np.float32)
        program = jax.jit(lambda ae, x: ae.encode(x)[0])
    compiled = program.lower(ae, x).compile()
    account = compiled.memory_analysis()
    assert account is not None
    print(
        f"{args.what} {args.side}² {args.dtype} whole={args.whole}: {account.temp_size_in_bytes / GIB:.2f} GiB", end=""
    )
    print(f" of temporaries, {account.argument_size_in_bytes / GIB:.2f} GiB of weights and input", flush=True)
    if args.account:
        return
    before, start = peak(), time.perf_counter()
    found = np.asarray(compiled(ae, x))
    print(f"  {time.perf_counter() - start:.0f} s, peak of the process {peak():.2f} GiB, {before:.2f} before it ran")
    if args.save:
        np.save(args.save, found)
    if args.against:
        expected = np.load(args.against)
        difference, rms = np.abs(found - expected), np.sqrt(np.square(expected).mean())
        print(f"  mean difference {difference.mean():.2e}, largest {difference.max():.2e}, RMS of the result {rms:.2f}")


if __name__ == "__main__":
    main()

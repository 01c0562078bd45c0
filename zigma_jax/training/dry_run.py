"""Compiles a training step without running it, also for devices that are not here, and says what it would take."""

import dataclasses
import importlib.util
import math
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from zigma_kernels.dispatch import compiling_for

from zigma_jax.errors import ConfigError, MissingPackageError
from zigma_jax.models.sequence import check_tokens
from zigma_jax.training.accounts import collectives, total_bytes
from zigma_jax.training.conditions import Captions, Conditions, labels_of
from zigma_jax.training.config import RunConfig
from zigma_jax.training.costs import peak_flops, training_flops
from zigma_jax.training.samples import PIXELS, Encoded, EncodedInStep, Samples
from zigma_jax.training.sharding import batch_sharding, check_batch, make_mesh
from zigma_jax.training.state import make_optimizer, make_state
from zigma_jax.training.step import make_train_step

GIB = 2**30
_TPU = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}  # dimensions of the torus
_ACCELERATOR = {"v5e": "v5litepod"}  # as libtpu calls it
_MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # GiB a chip


@dataclasses.dataclass(frozen=True)
class Account:
    """What a compiled training step takes, of one device, in bytes.

    arguments: the state and the batch. temporary: what the step needs beside them. total: of these and the program,
        less what its results take the place of. flops: as XLA counts them, loops once. formula: of all devices, by
        `costs.training_flops`.
    """

    arguments: int
    temporary: int
    total: int
    exchanged: dict[str, Any]
    flops: float
    formula: float
    program: str


def dry_run(config: RunConfig, topology: str | None = None) -> Account:
    """Compiles the step for all devices here, or for those of `topology`, and prints its account."""
    devices, memory = (jax.devices(), None) if topology is None else find_topology(topology)
    mesh = make_mesh(config.train.fsdp, devices, config.train.seq)
    account = compile_step(config, mesh)
    kind = devices[0].device_kind
    lines = [
        f"{mesh.size} × {kind}, mesh {dict(mesh.shape)}; batch {config.train.batch_size}",
        f"  state and batch {account.arguments / GIB:.2f} GiB, temporary {account.temporary / GIB:.2f} GiB a device: "
        f"{account.total / GIB:.2f} GiB" + (f" of {memory} GiB" if memory else ""),
        f"  exchanged {total_bytes(account.exchanged) / 1e6:,.1f} MB a step and device",
    ]
    lines += [f"    {e.kind} {e.count:,} times, {e.bytes / 1e6:,.1f} MB" for e in account.exchanged.values()]
    lines.append(f"  {account.formula / 1e12:.4g} TFLOPs a step by the formula (docs/training.md)")
    if peak := peak_flops(kind):
        fastest = account.formula / (peak * mesh.size)
        lines.append(f"  no step is faster than {1e3 * fastest:.3g} ms at the device's peak in bfloat16")
    if memory and account.total > memory * GIB:
        lines.append("  it does not fit: raise train.fsdp or train.accumulate, or set model.remat='block'")
    print("\n".join(lines))
    return account


def compile_step(config: RunConfig, mesh: Mesh) -> Account:
    """The account of a configuration's step on a mesh, whose devices need not be here."""
    check_tokens(config.model, config.train.seq)
    check_batch(config.train.batch_size, config.train.accumulate, mesh)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    graphdef, _, state = make_state(config.model, optimizer, config.train.seed, mesh)
    samples, conditions, batch = _inputs(config)
    sharding = batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for name, x in batch.items()}
    step = make_train_step(graphdef, optimizer, config, mesh, state, samples, conditions)
    with compiling_for(*mesh.devices.flat):
        compiled = step.compile(state, batch)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text_tokens = next((x.shape[1] for name, x in batch.items() if name in ("tokens", "token_ids")), 0)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    flops = 0.0
    if hasattr(config.model, "num_tokens"):
        flops = config.train.batch_size * training_flops(config.model, state.params, text_tokens)
    program = compiled.as_text()
    return Account(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        collectives(program),
        float(cost.get("flops", 0.0)),
        flops,
        program,
    )


def _inputs(config: RunConfig) -> tuple[Samples, Conditions, dict[str, jax.ShapeDtypeStruct]]:
    """How a batch of the run becomes samples and conditions, and its arrays; the data are not looked at."""
    b, model = config.train.batch_size, config.model

    def array(shape, dtype):
        return jax.ShapeDtypeStruct((b, *shape), dtype)

    samples, batch = PIXELS, {}
    if config.latent.autoencoder and config.latent.cache != "step":
        channels = model.sample_shape[-1]
        samples = Encoded((1.0,) * channels, (0.0,) * channels)
        batch |= {name: array(model.sample_shape, jnp.float16) for name in ("mean", "std")}
    else:
        if config.data.window is not None:
            batch["video"] = array((config.data.frames, *config.data.size, 3), jnp.uint8)
        else:
            batch["image"] = array((*config.data.size, 3), jnp.uint8)
            if config.data.flip:
                batch["flip"] = array((), jnp.bool_)
    if config.latent.autoencoder and config.latent.cache == "step":
        from zigma_jax.training.decoding import open_autoencoder

        samples = EncodedInStep(open_autoencoder(config.latent, model.sample_shape))
    if model.num_classes:
        batch["label"] = array((), jnp.int32)
    conditions: Conditions = labels_of(config)
    if config.text.encoder:
        from zigma_jax.training.prompts import null_text, open_text_encoder

        encoder = open_text_encoder(config.text, model.context_size)
        null = null_text(encoder, encoder.length)
        in_step = config.text.cache == "step"
        conditions = Captions(null, config.train.label_dropout, encoder if in_step else None)
        batch |= (
            {"token_ids": array((encoder.length,), jnp.int32)}
            if in_step
            else {"tokens": array((encoder.length, model.context_size), jnp.float16)}
        )
        if null.mask is not None:
            batch["token_mask"] = array((encoder.length,), jnp.bool_)
    return samples, conditions, batch


def find_topology(name: str) -> tuple[list[Any], int | None]:
    """The devices of a topology that is not here, and GiB of memory a device where that is known.

    name: "v5e-8", so many chips of a TPU; "v5e:2x4", the same by its shape; or FILE.txtpb[:COUNT], so many GPUs as XLA
        describes one in a file of that form.

    Raises:
        ConfigError: no such topology. MissingPackageError: the compiler for such devices is not installed.
    """
    from jax.experimental import topologies

    if match := re.fullmatch(r"(.+\.txtpb)(?::(\d+))?", name):
        file, count = Path(match[1]), int(match[2] or 1)
        if not file.is_file():
            raise ConfigError(f"--topology={name}: there is no file {file}")
        options: dict[str, Any] = {"target_config": file.read_text(), "topology": f"1x{count}x1"}
        platform, wanted, extra, memory = "cuda", file.stem, "cuda13", None
    else:
        platform, wanted, options, extra, memory = "tpu", *_tpu(name)
    try:
        found = topologies.get_topology_desc(wanted, platform=platform, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        if platform == "tpu" and importlib.util.find_spec("libtpu") is not None:
            raise ConfigError(f"--topology={name}: XLA knows no such TPU ({reason})") from error
        raise MissingPackageError(
            f"--topology={name}: needs XLA's compiler for it: pip install 'zigma_jax[{extra}]' ({reason})"
        ) from error
    return list(found.devices), memory


def _tpu(name: str) -> tuple[str, dict[str, Any], str, int | None]:
    match = re.fullmatch(r"(v\d\w?)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
    if not match or match[1] not in _TPU:
        raise ConfigError(
            f"--topology={name!r}: as v5e-8 or v5e:2x4, of {', '.join(_TPU)}; or FILE.txtpb:COUNT for GPUs"
        )
    kind, dimensions = match[1], _TPU[match[1]]
    shape = match[3] or _shape(int(match[2]), dimensions, name)
    chips = math.prod(int(side) for side in shape.split("x"))
    # libtpu would look for a TPU, and ask the network about it.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE=f"{_ACCELERATOR.get(kind, kind)}-{chips}",
        TPU_WORKER_HOSTNAMES="localhost",
    )
    return f"{kind}:{shape}", {}, "tpu", _MEMORY[kind]


def _shape(chips: int, dimensions: int, name: str) -> str:
    """The most compact torus of so many chips, a power of two."""
    if chips < 1 or chips & (chips - 1):
        raise ConfigError(f"--topology={name}: how many chips, must be a power of 2; give the shape, as in v5e:4x4")
    sides, rest = [1] * dimensions, chips
    while rest > 1:
        sides[sides.index(min(sides))] *= 2
        rest //= 2
    return "x".join(map(str, sorted(sides) if dimensions == 2 else sorted(sides, reverse=True)))

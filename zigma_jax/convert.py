"""Turns weights from one form into another: `python -m zigma_jax.convert --source=A --target=B`.

--source   a workdir of zigma_jax.train, an official PyTorch file or a safetensors file of any name, or a directory
           of orbax parameters
--target   NAME.pt (official; also .pth, .ckpt, .bin), NAME.safetensors, or a new directory: bare orbax parameters;
           with --config a workdir at step 0, from which `zigma_jax.train` with that configuration goes on
--family   sit for an official file of SiT's; package.module:Class of a model of your own
--config   also gives the architecture of a file that does not tell its own, such as a bare state dict
"""

import dataclasses

import jax
import numpy as np
from absl import app, flags

from zigma_jax.data.pipeline import make_dataset, open_source
from zigma_jax.errors import ConfigError
from zigma_jax.files import AnyPath, as_path
from zigma_jax.models.families import Model
from zigma_jax.programs import DEFINE_config, DEFINE_family, exit_with_errors, load_config, parse_flags
from zigma_jax.training.array_store import check_same_model, flatten
from zigma_jax.training.checkpoint import Checkpointer
from zigma_jax.training.conditions import open_conditions, open_encoder
from zigma_jax.training.config import RunConfig
from zigma_jax.training.parse_config import to_dict
from zigma_jax.training.samples import open_samples
from zigma_jax.training.sharding import make_mesh
from zigma_jax.training.state import make_optimizer, make_state
from zigma_jax.training.weights import FILE_SUFFIXES, is_workdir, load_weights, params_of, save_weights

_CONFIG = DEFINE_config()
_SOURCE = flags.DEFINE_string("source", None, "What to read.")
_TARGET = flags.DEFINE_string("target", None, "What to write; must not exist.")
_WEIGHTS = flags.DEFINE_string("weights", "ema", "ema, averaged; raw; or ema:0.1, of train.ema_lengths.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "Of a workdir: latest, best, or a step.")
_FAMILY = DEFINE_family()


def main(argv: list[str]) -> None:
    with exit_with_errors(argv):
        if _SOURCE.value is None or _TARGET.value is None:
            raise ConfigError("--source and --target are both needed")
        source, target = as_path(_SOURCE.value), as_path(_TARGET.value)
        config = None if _CONFIG.value is None else load_config(_CONFIG.value)
        if target.exists():
            raise ConfigError(f"{target} exists; choose another name")
        model, trained = load_weights(source, _WEIGHTS.value, _CHECKPOINT.value, config and config.model, _FAMILY())
        if config is None or target.suffix.lower() in FILE_SUFFIXES:
            save_weights(model, target)
        else:
            save_workdir(model, config, target)
        print(f"{target}: {sum(a.size for a in jax.tree.leaves(params_of(model))):,} parameters of {source}")
        if trained and trained.latent.autoencoder and not is_workdir(target):
            latent = trained.latent
            scale, shift = (
                ",".join(map(str, np.ravel(np.asarray(numbers, float)).tolist()))
                for numbers in (latent.scale, latent.shift)
            )
            print(
                "This form of weights does not say how samples become pictures. `zigma_jax.sample` needs to be told:\n"
                f"  --autoencoder={latent.autoencoder} --autoencoder_scale={scale} --autoencoder_shift={shift}"
            )
        if trained and trained.text.encoder and not is_workdir(target):
            print(
                "This form of weights does not say how prompts become tokens. `zigma_jax.sample` needs to be told:\n"
                f"  --text_encoder={trained.text.weights or trained.text.encoder}"
            )


def save_workdir(model: Model, config: RunConfig, workdir: AnyPath) -> None:
    """A workdir whose training starts from the model's weights, raw and averaged alike.

    Raises:
        ConfigError: the workdir exists, or the configuration's model visits or places tokens otherwise.
        CheckpointError: its model has other parameters.
    """
    if workdir.exists():
        raise ConfigError(f"{workdir} exists; choose another name")
    # Shapes cannot tell these apart, and with others the weights are worth nothing.
    for field in ("sample_shape", "scan", "scan_seed", "pos_embed", "head_size", "rotary", "num_heads"):
        ours, theirs = getattr(config.model, field, None), getattr(model.cfg, field, None)
        if ours != theirs and not (field == "scan_seed" and "random" not in getattr(model.cfg, "scan", "")):
            raise ConfigError(f"config.model.{field} = {ours!r}: the weights were trained with {theirs!r}")
    records = open_source(config.data)
    encoder = open_encoder(config, records)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    _, init_state, abstract_state = make_state(
        config.model, optimizer, config.train.seed, make_mesh(config.train.fsdp), config.train.ema_lengths
    )
    params = params_of(model)
    stored = {name: {"shape": leaf.shape, "dtype": str(leaf.dtype)} for name, leaf in flatten(params).items()}
    check_same_model(flatten(abstract_state.params), stored, workdir, partial=False)
    state = init_state()
    params = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), params, state.params)
    state = dataclasses.replace(state, params=params, ema=params, averages=dict.fromkeys(state.averages, params))
    found, config = open_samples(config, records)
    given, config = open_conditions(config, records, encoder)
    data = iter(
        make_dataset(
            config.data,
            global_batch=config.train.batch_size,
            seed=config.train.seed,
            encoded=found.encoded,
            text=given.texts,
        )
    )
    with Checkpointer(workdir / "checkpoints") as checkpoints:
        checkpoints.save(0, state, {"config": to_dict(config), "data": data.get_state()})


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

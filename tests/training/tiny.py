"""A run small enough for tests: 8-pixel avatars, two narrow layers."""

from zigma_jax.training.config import RunConfig
from zigma_jax.training.parse_config import default_config, from_dict

FIELDS = {
    "data.name": "avatars/tiny",
    "data.image_size": 8,
    "data.flip": True,
    "model.patch_size": 4,
    "model.hidden_size": 16,
    "model.depth": 2,
    "model.scan": "zigzag2",
    "model.state_size": 4,
    "model.num_classes": 20,
    "model.null_class": True,
    "train.batch_size": 16,
    "train.steps": 6,
    "train.label_dropout": 0.2,
    "train.ema_decay": 0.9,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 2,
    "checkpoint.every": 2,
    "log.every": 1,
    "log.preview_every": 0,
    "log.preview_count": 4,
    "sample.method": "euler",
    "sample.steps": 3,
}


def tiny_config(data_dir, **changes) -> RunConfig:
    """The tiny run with fields changed: `tiny_config(d, train__steps=3)`."""
    config = default_config()
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    for name, value in (FIELDS | {"data.data_dir": str(data_dir)} | changes).items():
        section, field = name.split(".")
        config[section][field] = value
    return from_dict(config)


def tiny_flags(data_dir, **changes) -> list[str]:
    """The same as flags of a program, on top of configs/quickstart.py."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    fields = FIELDS | {"data.data_dir": str(data_dir)} | changes
    return ["--config=configs/quickstart.py", *(f"--config.{name}={value}" for name, value in fields.items())]

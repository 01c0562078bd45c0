"""Cartoon faces in minutes on a laptop CPU: `python -m zigma_jax.train --config=configs/quickstart.py`."""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "avatars"
    config.data.image_size = 32
    config.data.flip = True

    config.model.patch_size = 4
    config.model.hidden_size = 128
    config.model.depth = 8
    config.model.drop_path_rate = 0.0
    config.model.num_classes = 20
    config.model.null_class = True

    config.train.steps = 500
    config.train.batch_size = 64
    config.train.label_dropout = 0.1
    config.train.ema_decay = 0.99
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50

    config.checkpoint.every = 250
    config.log.every = 10
    config.log.preview_every = 250
    config.log.preview_count = 40
    config.sample.method = "heun"
    config.sample.steps = 20
    return config

"""Cartoon faces in minutes on a laptop CPU."""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "avatars"
    config.data.image_size = 32
    config.data.flip = True
    config.model.patch_size = 4
    config.model.hidden_size = 192
    config.model.depth = 8
    config.model.drop_path_rate = 0.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 30
    config.optimizer.schedule = "cosine"
    config.train.steps = 400
    config.train.batch_size = 64
    config.train.ema_decay = 0.99
    config.checkpoint.every = 200
    config.log.every = 10
    config.log.preview_every = 100
    config.log.preview_count = 36
    config.sample.method = "heun"
    config.sample.steps = 25
    return config

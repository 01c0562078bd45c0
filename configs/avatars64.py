"""Cartoon faces at 64 pixels, by class: a real run on one GPU, from a data set that is painted on the spot.

    python -m zigma_jax.train --config=configs/avatars64.py

Hardware: one GPU; ZigMa-S/2 (32 M parameters), 1024 tokens, bfloat16.
Time and result: not measured yet.
"""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "avatars"
    config.data.image_size = 64
    config.data.flip = True

    config.model.patch_size = 2
    config.model.hidden_size = 368
    config.model.depth = 24
    config.model.num_classes = 20
    config.model.null_class = True
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"
    config.model.unroll = True

    config.train.steps = 100_000
    config.train.batch_size = 128
    config.train.label_dropout = 0.1
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "cosine"
    config.log.preview_count = 40
    config.sample.method = "heun"
    return config

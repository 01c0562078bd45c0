"""CIFAR-10 by class with ZigMa-B/2.

    python -m zigma_jax.train --config=configs/cifar10.py

Hardware: one GPU; 135 M parameters, 256 tokens, bfloat16.
Time and result: not measured yet.
"""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.flip = True

    config.model.patch_size = 2
    config.model.hidden_size = 768
    config.model.depth = 24
    config.model.num_classes = 10
    config.model.null_class = True
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"
    config.model.unroll = True

    config.train.steps = 400_000
    config.train.batch_size = 128
    config.train.label_dropout = 0.1
    config.log.preview_count = 40
    return config

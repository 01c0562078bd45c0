"""Cartoon faces at 256 pixels in TAEF2's latents: from nothing to large pictures in about an hour on two CPU cores.

    python -m zigma_jax.train --config=configs/faces256.py --config.latent.autoencoder=taef2:DIR

DIR holds taef2_encoder.pth and taef2_decoder.pth of https://github.com/madebyollin/taesd (MIT). With the extra `hub`
and a connection, the flag can be left out. The faces are painted and encoded on first use.

Hardware: 2 CPU cores. The model has 20 M parameters and 64 tokens of 512 numbers.
"""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "avatars/256_small"
    config.data.image_size = 256
    config.latent.autoencoder = "taef2:hf://madebyollin/taef2"
    config.latent.statistics = "measured"  # deviations of the channels lie between 0.38 and 1.01

    config.model.patch_size = 4
    config.model.hidden_size = 512
    config.model.depth = 8
    config.model.state_size = 8
    config.model.expand = 1
    config.model.drop_path_rate = 0.0
    config.model.num_classes = 20
    config.model.null_class = True

    config.train.steps = 2400
    config.train.batch_size = 16
    config.train.cpu_devices = 2
    config.train.label_dropout = 0.1
    config.train.ema_decay = 0.99
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50

    config.checkpoint.every = 400
    config.log.every = 10
    config.log.preview_every = 400
    config.log.preview_count = 16
    config.sample.method = "heun"
    config.sample.steps = 16
    config.eval.samples = 1_000
    return config

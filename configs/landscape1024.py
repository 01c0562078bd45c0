"""LandscapeHQ at 1024 pixels: the model of the published `landscape1024_0210000.pt`, on latents of 128 x 128 x 4.

    python -m zigma_jax.train --config=configs/landscape1024.py --config.data.folder=DIR

Data: LHQ's 90,000 landscapes of 1024 pixels in DIR (docs/data.md), encoded once by Stable Diffusion's autoencoder
(sd-vae-ft-ema) from the Hugging Face hub (`pip install "zigma_jax[hub]"`; a local copy:
--config.latent.autoencoder=DIR). Model and optimiser: as the original's config/model/s1024_zigzag8_b2_old.yaml (no
positional embedding) and config/data/landscapehq_1024.yaml.
Pictures from the published checkpoint, without training:

    python -m zigma_jax.sample --source=landscape1024_0210000.pt --autoencoder=hf://stabilityai/sd-vae-ft-ema

Hardware: one 80 GB GPU; 133 M parameters, 4,096 tokens, bfloat16.
Time and result: not run; neither the data nor the published weights can be had where this was written. Run instead, on
a CPU: the same program with TAEF2's latents (configs/faces256.py), and checkpoints of this form (docs/latents.md).
"""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "folder"
    config.data.image_size = 1024
    config.latent.autoencoder = "hf://stabilityai/sd-vae-ft-ema"

    config.model.sample_shape = (128, 128, 4)  # known without asking the autoencoder
    config.model.patch_size = 2
    config.model.pos_embed = "none"
    config.model.hidden_size = 768
    config.model.depth = 24
    config.model.scan = "zigzag8"
    config.model.dtype = "bfloat16"
    config.model.unroll = True

    config.train.steps = 400_000
    config.train.batch_size = 20
    config.optimizer.learning_rate = 1e-4
    config.train.ema_decay = 0.9999
    config.checkpoint.every = 10_000
    config.log.preview_every = 10_000
    config.sample.method = "dopri5"
    config.eval.samples = 5_000
    return config

"""MultiModal-CelebA-HQ at 256 pixels without its captions, as in the paper, on latents of 32 x 32 x 4.

    python -m zigma_jax.train --config=configs/celebamm256_uncond.py --config.data.folder=DIR

Data: the 30,000 faces of CelebA-HQ, as pictures in DIR (docs/data.md), encoded once by Stable Diffusion's autoencoder
(sd-vae-ft-ema) from the Hugging Face hub (`pip install "zigma_jax[hub]"`; a local copy:
--config.latent.autoencoder=DIR). Model and optimiser: as the original's config/model/zigzag8_b1_pe2.yaml and
config/data/celebamm256_uncond.yaml. The original's shards of 512-pixel pictures with their latents are read as they
are: --config.data.name=webdataset --config.data.shards=DIR (docs/data.md).

Hardware: one 80 GB GPU; 135 M parameters, 1,024 tokens, bfloat16.
Time and result: not run; the data cannot be had where this was written. Run instead, on a CPU: the same program with
TAEF2's latents (configs/faces256.py).
"""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "folder"
    config.data.image_size = 256
    config.latent.autoencoder = "hf://stabilityai/sd-vae-ft-ema"

    config.model.sample_shape = (32, 32, 4)  # known without asking the autoencoder
    config.model.patch_size = 1
    config.model.pos_embed = "learned"
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

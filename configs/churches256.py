"""LSUN Churches at 256 pixels: the model of the published `churches256_0280000.pt`, on latents of 32 x 32 x 4.

    python -m zigma_jax.train --config=configs/churches256.py

Data: `lsun/church_outdoor` of TFDS (126,227 pictures for training), encoded once by Stable Diffusion's autoencoder
(sd-vae-ft-ema) from the Hugging Face hub (`pip install "zigma_jax[hub]"`; a local copy:
--config.latent.autoencoder=DIR). docs/data.md says how to bring the pictures from elsewhere, as a folder or as the tars
that the original reads. Model and optimiser: as the original's config/model/zigzag8_b1_pe2.yaml and
config/data/churches256.yaml, whose batch is 3 a device.
Pictures from the published checkpoint, without training:

    python -m zigma_jax.sample --source=churches256_0280000.pt --autoencoder=hf://stabilityai/sd-vae-ft-ema

Hardware: one 80 GB GPU; 135 M parameters, 1,024 tokens, bfloat16.
Time and result: not run; neither the data nor the published weights can be had where this was written. Run instead, on
a CPU: the same program with TAEF2's latents (configs/faces256.py), and checkpoints of this form (docs/latents.md).
"""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "lsun/church_outdoor"
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

"""LSUN Churches at 256 pixels: the model of the published `churches256_0280000.pt`, on latents of 32 x 32 x 4.

    python -m zigma_jax.train --config=configs/churches256.py

Data: `lsun/church_outdoor` of TFDS (126,227 pictures for training), encoded once by Stable Diffusion's autoencoder
(sd-vae-ft-ema) from the Hugging Face hub (`pip install "zigma_jax[hub]"`; a local copy:
--config.latent.autoencoder=DIR). docs/data.md says how to bring the pictures from elsewhere, as a folder or as the tars
that the original reads. Model and optimiser: as the original's config/model/zigzag8_b1_pe2.yaml and
config/data/churches256.yaml, whose batch is 3 a device.
Pictures from the published checkpoint, without training:

    python -m zigma_jax.sample --source=churches256_0280000.pt --autoencoder=hf://stabilityai/sd-vae-ft-ema

zigma_jax/training/published.py sets what the published models have in common: width 768, depth 24, zigzag8, and 400,000
steps of 20 pictures at a learning rate of 1e-4.

Hardware: one 80 GB GPU; 135 M parameters, 1,024 tokens, bfloat16.
Time and result: not run; neither the data nor the published weights can be had where this was written. Run instead, on
a CPU: the same program with TAEF2's latents (configs/faces256.py), and checkpoints of this form (docs/latents.md).
"""

from zigma_jax.training.published import published_config


def get_config():
    config = published_config(image_size=256, patch_size=1, pos_embed="learned")
    config.data.name = "lsun/church_outdoor"
    return config

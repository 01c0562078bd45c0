"""MultiModal-CelebA-HQ at 256 pixels without its captions, as in the paper, on latents of 32 x 32 x 4.

    python -m zigma_jax.train --config=configs/celebamm256_uncond.py --config.data.folder=DIR

Data: the 30,000 faces of CelebA-HQ, as pictures in DIR (docs/data.md), encoded once by Stable Diffusion's autoencoder
(sd-vae-ft-ema) from the Hugging Face hub (`pip install "zigma_jax[hub]"`; a local copy:
--config.latent.autoencoder=DIR). Model and optimiser: as the original's config/model/zigzag8_b1_pe2.yaml and
config/data/celebamm256_uncond.yaml. The original's shards of 512-pixel pictures with their latents are read as they
are: --config.data.name=webdataset --config.data.shards=DIR (docs/data.md).

zigma_jax/training/published.py sets what the published models have in common: width 768, depth 24, zigzag8, and 400,000
steps of 20 pictures at a learning rate of 1e-4.

Hardware: one 80 GB GPU; 135 M parameters, 1,024 tokens, bfloat16.
Time and result: not run; the data cannot be had where this was written. Run instead, on a CPU: the same program with
TAEF2's latents (configs/faces256.py).
"""

from zigma_jax.training.published import published_config


def get_config():
    config = published_config(image_size=256, patch_size=1, pos_embed="learned")
    config.data.name = "folder"
    return config

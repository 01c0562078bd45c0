"""FacesHQ at 1024 pixels: the model of the published `faceshq1024_0090000.pt`, on latents of 128 x 128 x 4.

    python -m zigma_jax.train --config=configs/faceshq1024.py --config.data.folder=DIR

Data: FacesHQ, which is CelebA-HQ and FFHQ together, as pictures of 1024 pixels in DIR (docs/data.md), encoded once by
Stable Diffusion's autoencoder (sd-vae-ft-ema) from the Hugging Face hub (`pip install "zigma_jax[hub]"`; a local copy:
--config.latent.autoencoder=DIR). Model and optimiser: as the original's config/model/s1024_zigzag8_b2_old.yaml (no
positional embedding) and config/data/facehq_1024.yaml.
Pictures from the published checkpoint, without training:

    python -m zigma_jax.sample --source=faceshq1024_0090000.pt --autoencoder=hf://stabilityai/sd-vae-ft-ema

zigma_jax/training/published.py sets what the published models have in common: width 768, depth 24, zigzag8, and 400,000
steps of 20 pictures at a learning rate of 1e-4.

Hardware: one 80 GB GPU; 133 M parameters, 4,096 tokens, bfloat16.
Time and result: not run; neither the data nor the published weights can be had where this was written. Run instead, on
a CPU: the same program with TAEF2's latents (configs/faces256.py), and checkpoints of this form (docs/latents.md).
"""

from zigma_jax.training.published import published_config


def get_config():
    config = published_config(image_size=1024, patch_size=2, pos_embed="none")
    config.data.name = "folder"
    return config

"""MultiModal-CelebA-HQ at 256 pixels with its captions, as in the paper, on latents of 32 x 32 x 4.

    python -m zigma_jax.train --config=configs/celebamm256.py --config.data.folder=DIR

Data: the 30,000 faces of CelebA-HQ with ten captions each. DIR has the pictures (images/N.jpg, or CelebA-HQ-img/N.jpg
of CelebAMask-HQ) and celeba-caption/N.txt, as https://github.com/IIGROUP/MM-CelebA-HQ-Dataset gives them out
(docs/data.md), for non-commercial research. The pictures are encoded once by Stable Diffusion 1.5's autoencoder, the
captions in the training step by CLIP L/14's text tower, both from the Hugging Face hub (`pip install
"zigma_jax[hub,text]"`; local copies: --config.latent.autoencoder=DIR --config.text.encoder=DIR).
--config.text.cache=encoded encodes the captions once, too, which takes 118 KB a caption, 36 GB in all. The original's
shards of 512-pixel pictures with latents and captions are read as they are: --config.data.name=webdataset
--config.data.shards=DIR --config.latent.cache=stored.

Model and optimiser: as the original's config/model/zigzag8_b1_pe2.yaml and config/data/celebamm256.yaml.
zigma_jax/training/published.py sets what the published models have in common: width 768, depth 24, zigzag8, and 400,000
steps of 20 pictures at a learning rate of 1e-4. The original never drops captions, so that its models are drawn from
without guidance; --config.train.label_dropout=0.1 trains for it.

Hardware: one 80 GB GPU; 1,024 tokens that look at 77 of a caption, bfloat16.
Time and result: not run; neither data nor weights can be had where this was written.
"""

from zigma_jax.training.published import published_config


def get_config():
    config = published_config(image_size=256, patch_size=1, pos_embed="learned")
    config.data.name = "folder"
    config.latent.autoencoder = "hf://stable-diffusion-v1-5/stable-diffusion-v1-5/vae"
    config.text.encoder = "hf://openai/clip-vit-large-patch14"
    config.text.cache = "step"
    config.model.context_size = 768
    return config

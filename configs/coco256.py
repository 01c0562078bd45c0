"""COCO 2014 at 256 pixels with its captions, as in the paper, on latents of 32 x 32 x 4.

    python -m zigma_jax.train --config=configs/coco256.py --config.data.folder=DIR

Data: train2014.zip, val2014.zip and annotations_trainval2014.zip of https://cocodataset.org/#download, laid in DIR
(docs/data.md): 82,783 pictures to train on and 40,504 held out (`validation`), with about five captions each. TFDS's
own set, with the splits of Karpathy and Li, works too: --config.data.name=coco_captions. The pictures are encoded once
by Stable Diffusion 1.5's autoencoder, the captions in the training step by CLIP L/14's text tower, both from the
Hugging Face hub (`pip install "zigma_jax[hub,text]"`; local copies: --config.latent.autoencoder=DIR
--config.text.encoder=DIR). --config.text.cache=encoded encodes the captions once, too, which takes 118 KB a caption,
49 GB in all.

Model and optimiser: as the original's config/model/zigzag8_b1_pe2.yaml and config/data/coco.yaml, but 48 pictures a
step in place of 20, as the name of the published checkpoint has it (zigzagN8_b1_pe2_coco14_bs48_0400000.pt).
zigma_jax/training/published.py sets what the published models have in common: width 768, depth 24, zigzag8, and 400,000
steps at a learning rate of 1e-4. The original never drops captions, so that its models are drawn from without guidance;
--config.train.label_dropout=0.1 trains for it.

Hardware: one 80 GB GPU; 1,024 tokens that look at 77 of a caption, bfloat16.
Time and result: not run; neither data nor weights can be had where this was written. The set was prepared from small
made-up archives in the layout of the real ones (tests/data/test_coco.py).
"""

from zigma_jax.training.published import published_config


def get_config():
    config = published_config(image_size=256, patch_size=1, pos_embed="learned")
    config.data.name = "coco"
    config.eval.split = "validation"
    config.latent.autoencoder = "hf://stable-diffusion-v1-5/stable-diffusion-v1-5/vae"
    config.text.encoder = "hf://openai/clip-vit-large-patch14"
    config.text.cache = "step"
    config.model.context_size = 768
    config.train.batch_size = 48
    return config

"""What the configs of the published models have in common."""

from typing import Any

from zigma_jax.training.parse_config import default_config


def published_config(image_size: int, *, patch_size: int, pos_embed: str) -> Any:
    """The original's ZigMa-B with eight zigzag orders, on latents of Stable Diffusion's autoencoder, as it was trained.

    A config sets where its pictures come from, and whatever else differs.

    Args:
        image_size: pixels a side; latents have an eighth of them, and four channels.
        patch_size: latents' positions a token's side.
        pos_embed: "learned" or "none".
    """
    config = default_config()
    config.data.image_size = image_size
    config.latent.autoencoder = "hf://stabilityai/sd-vae-ft-ema"

    config.model.sample_shape = (image_size // 8, image_size // 8, 4)  # known without asking the autoencoder
    config.model.patch_size = patch_size
    config.model.pos_embed = pos_embed
    config.model.hidden_size = 768
    config.model.depth = 24
    config.model.scan = "zigzag8"
    config.model.dtype = "bfloat16"
    config.model.unroll = True

    config.train.steps = 400_000
    config.train.batch_size = 20
    config.train.ema_decay = 0.9999
    config.optimizer.learning_rate = 1e-4
    config.checkpoint.every = 10_000
    config.log.preview_every = 10_000
    config.sample.method = "dopri5"
    config.eval.samples = 5_000
    return config

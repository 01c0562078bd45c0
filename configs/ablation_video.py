"""Orders through space and time compared: 8 frames of 32 pixels, on a laptop's CPU.

    python -m zigma_jax.ablation --config=configs/ablation_video.py --workdir=runs/ablation_video

Hardware: 2 CPU cores. The models have 0.6 M parameters and 512 tokens. Time and result: docs/ablation.md.
"""

from zigma_jax.ablation.config import default_ablation


def get_config():
    config = default_ablation()
    config.data.name = "avatars_moving"
    config.data.image_size = 32
    config.data.frames = 8
    config.data.flip = True

    config.model.patch_size = 4
    config.model.hidden_size = 64
    config.model.depth = 12
    config.model.temporal_pos_embed = True
    config.model.drop_path_rate = 0.0

    config.train.steps = 400
    config.train.batch_size = 8
    config.train.cpu_devices = 2
    config.train.accumulate = 2  # small parts stay in the cache
    config.train.ema_decay = 0.99
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.sample.method = "heun"
    config.sample.steps = 9

    config.ablation.scans = ("sweep1", "video_sst", "video_st", "zigzag3d12")
    config.ablation.features = "motion"
    config.ablation.evaluations = 4
    config.ablation.distances = 1
    config.ablation.samples = 500
    config.ablation.batch = 50
    return config

"""Orders and backbones compared at 256 tokens: 64-pixel cartoon faces, on a laptop's CPU.

    python -m zigma_jax.ablation --config=configs/ablation_backbones.py [--config.ablation.equal=time]

Hardware: 2 CPU cores. The models have some 0.5 M parameters. Time and result: not yet run whole; docs/ablation.md.
"""

from zigma_jax.ablation.config import default_ablation


def get_config():
    config = default_ablation()
    config.data.name = "avatars"
    config.data.image_size = 64
    config.data.flip = True

    config.model.patch_size = 4
    config.model.hidden_size = 64
    config.model.depth = 8
    config.model.pos_embed = "sincos"
    config.model.drop_path_rate = 0.0

    config.train.steps = 320
    config.train.batch_size = 16
    config.train.cpu_devices = 2
    config.train.accumulate = 2  # small parts stay in the cache
    config.train.ema_decay = 0.99
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.sample.method = "heun"
    config.sample.steps = 6

    config.ablation.scans = ("zigzag8", "sweep2", "hilbert8", "attention", "sit", "mamba2", "hybrid4")
    config.ablation.features = "effnet"
    config.ablation.evaluations = 4
    config.ablation.distances = 1
    config.ablation.held_out = "test[:1000]"
    config.ablation.samples = 500
    return config

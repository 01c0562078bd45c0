"""The paper's ablation at a size for a laptop's CPU: seven scan orders, three seeds, 32-pixel cartoon faces.

    python -m zigma_jax.ablation --config=configs/ablation.py

Not for `zigma_jax.train`: `model.scan` and `train.seed` are what varies, and the section `ablation` says how.
Hardware: 2 CPU cores. The model has 0.4 M parameters and 64 tokens.
Time: 75 minutes, the cores shared with other work (2026-11-23). Result: docs/ablation.md.
"""

from zigma_jax.ablation.config import default_ablation


def get_config():
    config = default_ablation()
    config.data.name = "avatars"
    config.data.image_size = 32
    config.data.flip = True

    config.model.patch_size = 4
    config.model.hidden_size = 64
    config.model.depth = 8
    config.model.drop_path_rate = 0.0

    config.train.steps = 640
    config.train.batch_size = 32
    config.train.cpu_devices = 2
    config.train.accumulate = 4  # small parts stay in the cache
    config.train.ema_decay = 0.99
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.sample.method = "heun"
    config.sample.steps = 9

    config.ablation.evaluations = 8
    config.ablation.distances = 2
    config.ablation.samples = 1000
    return config

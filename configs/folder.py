"""Your own pictures: any directory of images, at 64 pixels, without labels.

    python -m zigma_jax.train --config=configs/folder.py --config.data.folder=DIR [--workdir=runs/mine]

With a subfolder a class (or a metadata.csv with a `label` column) the model can be told the class:
`--config.model.num_classes=N --config.model.null_class=True --config.train.label_dropout=0.1`; see docs/data.md.

Hardware: one GPU; ZigMa-S/2 (32 M parameters), 1024 tokens, bfloat16. On a CPU take less:
`--config.data.image_size=32 --config.model.patch_size=4 --config.model.depth=8 --config.train.batch_size=32`.
Time and result: depend on your pictures.
"""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "folder"
    config.data.image_size = 64
    config.data.flip = True

    config.model.patch_size = 2
    config.model.hidden_size = 368
    config.model.depth = 24
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"

    config.train.steps = 100_000
    config.train.batch_size = 128
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "cosine"
    return config

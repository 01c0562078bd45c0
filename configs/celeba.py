r"""CelebA at 64 pixels with ZigMa-B/2, for one 80 GB GPU.

    python -m zigma_jax.train --config=configs/celeba.py

The pictures come from a mirror on the Hugging Face hub (1.4 GB; needs the extra `hub`). CelebA may be used for
non-commercial research only. From its authors' own files, laid by hand in DIR (img_align_celeba.zip,
list_eval_partition.txt, list_attr_celeba.txt; see docs/data.md):

    python -m zigma_jax.train --config=configs/celeba.py --config.data.name=celeba --config.data.folder=DIR

TFDS's own `celeb_a` is read too, if it lies prepared in `data.data_dir`; its download is nearly always over its quota.
The whole path on another set and any machine:

    python -m zigma_jax.train --config=configs/celeba.py --config.data.name=avatars --config.train.steps=2 \
        --config.train.batch_size=16

Hardware: one 80 GB GPU; 135 M parameters, 1,024 tokens, bfloat16. By XLA's account, compiled and not run
(docs/benchmarks.md), a step of 128 samples takes 43.0 GiB in all of an H100, of whose memory JAX takes 59 GiB by
default; 192 samples would take 59.6. On a GPU of 24 GB, --config.train.accumulate=4 computes the same batch in parts,
in 16.0 GiB. On a v5e-8, --config.train.batch_size=256 fits, with a peak of 13.8 GiB on each chip of 16.
Time and result: not measured yet. Only the last command was run: two steps on two CPU cores took 2 min 25 s in all.
"""

from zigma_jax.training.parse_config import default_config


def get_config():
    config = default_config()
    config.data.name = "hf://datasets/tpremoli/CelebA-attrs"
    config.data.image_size = 64
    config.data.flip = True

    config.model.patch_size = 2
    config.model.hidden_size = 768
    config.model.depth = 24
    config.model.dtype = "bfloat16"
    config.model.remat = "block"

    config.train.steps = 400_000
    config.train.batch_size = 128
    config.train.cpu_devices = 2  # on a CPU bfloat16 runs several times slower on one device
    return config

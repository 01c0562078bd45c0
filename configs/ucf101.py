"""UCF101, 16 frames of 256 pixels, by action: the original's model on latents of 16 x 32 x 32 x 4.

    python -m zigma_jax.train --config=configs/ucf101.py --config.data.folder=DIR

Data: DIR holds UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip as their authors give them out, or what is in
them (docs/video.md; `pip install "zigma_jax[video,hub]"`). Every frame is encoded once by Stable Diffusion 1.5's
autoencoder; of each clip eight windows, which take 40 GB with their mirror images. --config.latent.cache=step encodes
in the training step instead, and draws any window. All clips: --config.data.split=train+test.

Model and optimiser: as the original's config/model/3d_zigzag8sst_b2.yaml, config/data/ucf101.yaml and the command in
its README, which has 4 GPUs with 4 clips each. --config.model.scan=sweep2 is its baseline. The original trains on clips
alone, without still pictures beside them.

Hardware: one 80 GB GPU, or several; 135 M parameters, 4,096 tokens, bfloat16.
Time and result: not run; neither the clips nor the autoencoder's weights can be had where this was written. A step of
one clip of made-up latents was run on a CPU: 43 s of CPU time, 13.8 GB (docs/video.md).
"""

from zigma_jax.training.published import published_config


def get_config():
    config = published_config(image_size=256, patch_size=2, pos_embed="learned")
    config.data.name = "ucf101"
    config.data.frames = 16
    config.data.flip = True
    config.latent.autoencoder = "hf://stable-diffusion-v1-5/stable-diffusion-v1-5/vae"
    config.latent.windows = 8
    config.model.sample_shape = (16, 32, 32, 4)
    config.model.scan = "video_sst"
    config.model.num_classes = 101
    config.model.remat = "block"
    config.train.batch_size = 16
    config.train.accumulate = 4
    return config

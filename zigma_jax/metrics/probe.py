"""A small network that reads attributes from pictures: trained on a labelled set, then asked what samples show."""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
from absl import logging
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8
from safetensors.numpy import save
from tqdm import tqdm

from zigma_jax.files import write_atomically

Values = Mapping[str, Int[np.ndarray, " n"]]
"""Of each attribute its value in every picture: a number below the attribute's count of values, or negative where the
picture does not show it, which is neither trained on nor scored."""
Images = UInt8[np.ndarray, "n h w 3"]

_SIDE = 64  # pixels: larger pictures are made smaller, since what is asked for shows at this size
_HEADER = "zigma_jax.probe"  # JSON of what a file's probe was trained on and how


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """A probe and its training.

    size: (height, width) of the pictures, in pixels. attributes: how many values each has.
    steps, passes: so many of the training's steps, or through all pictures, whichever is less.
    flip: mirrored pictures show the same, as in the training of the model whose samples are read.
    shift: pictures are moved by up to so many pixels. noise: to them is added noise of up to this standard deviation,
        pixels being in [-1, 1], so that the rough surfaces of samples do not change what is read.
    """

    size: tuple[int, int]
    attributes: Mapping[str, int]
    flip: bool = False
    width: int = 32
    steps: int = 2_500
    passes: int = 20
    batch_size: int = 64
    learning_rate: float = 4e-3
    shift: int = 2
    noise: float = 0.1
    seed: int = 0


class Probe(nnx.Module):
    """Convolutions that halve the picture down to 4 pixels or so, and one linear head for each attribute."""

    def __init__(self, cfg: ProbeConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        height, width = (min(side, _SIDE) for side in cfg.size)
        channels, layers, norms = 3, [], []
        # The first layer looks at 4 x 4 pixels every 2: convolutions of whole pictures are most of the time otherwise.
        kernel, out = 4, cfg.width
        while not layers or min(height, width) > 4:
            layers.append(nnx.Conv(channels, out, (kernel, kernel), strides=2, padding="SAME", rngs=rngs))
            norms.append(nnx.LayerNorm(out, rngs=rngs))
            height, width = math.ceil(height / 2), math.ceil(width / 2)
            channels, out, kernel = out, min(2 * out, 8 * cfg.width), 3
        self.layers, self.norms = nnx.List(layers), nnx.List(norms)
        self.heads = nnx.Linear(height * width * channels, sum(cfg.attributes.values()), rngs=rngs)  # all in one

    def __call__(self, x: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b _"]]:
        """The logits of each attribute, of pictures in [-1, 1] of the configuration's size."""
        height, width = (min(side, _SIDE) for side in self.cfg.size)
        if x.shape[1:3] != (height, width):
            x = jax.image.resize(x, (len(x), height, width, 3), "linear")
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = jax.nn.gelu(norm(layer(x)))
        logits = self.heads(x.reshape(len(x), -1))
        ends = np.cumsum(list(self.cfg.attributes.values()))
        return dict(zip(self.cfg.attributes, jnp.split(logits, ends[:-1], axis=-1), strict=True))


def cached_probe(
    path: Path, cfg: ProbeConfig, about: Mapping[str, Any], pictures: Callable[[], tuple[Images, Values]]
) -> Probe:
    """The probe in `path`, or one trained on `pictures()` and written there, for later calls with the same arguments.

    about: what tells the pictures from others. A file of another probe, or that cannot be read, is replaced.
    """
    said = json.dumps({"config": dataclasses.asdict(cfg), "about": dict(about)}, sort_keys=True)
    probe = nnx.eval_shape(lambda: Probe(cfg, rngs=nnx.Rngs(0)))
    graphdef, shapes = nnx.split(probe)
    names = [jax.tree_util.keystr(name) for name, _ in jax.tree.leaves_with_path(shapes)]
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get(_HEADER) == said:
                leaves = [jnp.asarray(file.get_tensor(name)) for name in names]
                return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(shapes), leaves))
    except (OSError, safetensors.SafetensorError):
        pass  # not there, or not ours
    probe = train_probe(cfg, *pictures())
    if jax.process_index() == 0:
        leaves = jax.tree.leaves(nnx.state(probe))
        tensors = {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}
        try:
            write_atomically(path, save(tensors, metadata={_HEADER: said}))
        except OSError as error:  # a data set that others own
            logging.warning("the probe cannot be kept, and will be trained again: %s", error)
    return probe


def train_probe(cfg: ProbeConfig, images: Images, values: Values) -> Probe:
    """A probe trained on these pictures, the same for the same arguments, with a progress bar."""
    graphdef, params = nnx.split(Probe(cfg, rngs=nnx.Rngs(cfg.seed)))
    steps = min(cfg.steps, -(-cfg.passes * len(images) // cfg.batch_size))
    rate = optax.cosine_onecycle_schedule(steps, cfg.learning_rate, pct_start=0.15)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, images, values, key):
        def loss(params):
            logits = nnx.merge(graphdef, params)(_augment(cfg, images, key))
            return sum(_cross_entropy(logits[name], values[name]) for name in logits)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    key = jax.random.key(cfg.seed)
    interval = 0.1 if sys.stderr.isatty() else 30  # a log file wants few lines
    hidden = jax.process_index() > 0
    with tqdm(total=steps, desc="probe", unit="step", leave=False, mininterval=interval, disable=hidden) as bar:
        for number, chosen in zip(range(steps), _batches(len(images), cfg), strict=False):
            batch = {name: of[chosen] for name, of in values.items()}
            params, state, _ = step(params, state, images[chosen], batch, jax.random.fold_in(key, number))
            bar.update()
    return nnx.merge(graphdef, params)


def read(probe: Probe, images: Images, batch_size: int = 256) -> dict[str, Int[np.ndarray, " n"]]:
    """The value of each attribute that the probe takes every picture to show."""
    graphdef, params = nnx.split(probe)

    @jax.jit
    def best(params, images):
        logits = nnx.merge(graphdef, params)(_to_float(images))
        return {name: jnp.argmax(of, -1) for name, of in logits.items()}

    size, found = min(batch_size, len(images)), []
    for first in range(0, len(images), size):
        batch = images[first : first + size]
        values = jax.device_get(best(params, np.resize(batch, (size, *batch.shape[1:]))))
        found.append({name: of[: len(batch)] for name, of in values.items()})
    return {name: np.concatenate([part[name] for part in found]) for name in probe.cfg.attributes}


def _augment(cfg: ProbeConfig, images: UInt8[Array, "b h w 3"], key: Key[Array, ""]) -> Float[Array, "b h w 3"]:
    def one(image, key):
        flip, move, strength, noise = jax.random.split(key, 4)
        if cfg.flip:
            image = jnp.where(jax.random.bernoulli(flip), image[:, ::-1], image)
        padded = jnp.pad(image, ((cfg.shift, cfg.shift), (cfg.shift, cfg.shift), (0, 0)), mode="edge")
        top, left = jax.random.randint(move, (2,), 0, 2 * cfg.shift + 1)
        image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
        return image + cfg.noise * jax.random.uniform(strength) * jax.random.normal(noise, image.shape)

    return jax.vmap(one)(_to_float(images), jax.random.split(key, len(images)))


def _to_float(images):
    return images.astype(jnp.float32) / 127.5 - 1


def _cross_entropy(logits, values):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(values, 0))
    return jnp.mean(jnp.where(values < 0, 0.0, losses))


def _batches(count: int, cfg: ProbeConfig) -> Iterator[np.ndarray]:
    """Endless batches of numbers below `count`, every pass in an order of its own."""
    rest = np.zeros(0, np.int64)
    for number in range(2**31):
        order = np.argsort(np.random.Philox(key=[cfg.seed, number]).random_raw(count), kind="stable")
        rest = np.concatenate([rest, order])
        while len(rest) >= cfg.batch_size:
            yield rest[: cfg.batch_size]
            rest = rest[cfg.batch_size :]

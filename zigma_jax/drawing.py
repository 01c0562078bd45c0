"""What `sample` and `evaluate` share: the flags that say what is drawn from which model, and what they mean."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import Mesh

from zigma_jax.data.config import LatentConfig, TextConfig
from zigma_jax.errors import ConfigError, UserError
from zigma_jax.files import AnyPath, as_path
from zigma_jax.interpolant import Interpolant, autoguide
from zigma_jax.interpolant.guidance import check_guidance
from zigma_jax.models.families import BackboneConfig, Model
from zigma_jax.models.text import Text
from zigma_jax.programs import DEFINE_family, DEFINE_sample, parse_labels
from zigma_jax.training.config import RunConfig, SampleConfig, check_guided
from zigma_jax.training.decoding import Decoder, open_autoencoder
from zigma_jax.training.prompts import (
    Conditions,
    Prompts,
    captions_of,
    held_out,
    open_text_encoder,
    read_prompts,
)
from zigma_jax.training.sampling import Encoder, Sampler, choose_labels, make_encoder, make_sampler
from zigma_jax.training.sharding import put, replicated
from zigma_jax.training.state import Params
from zigma_jax.training.weights import is_workdir, load_weights, load_workdir, params_of

SHOWN = 1_000  # captions of the data set that are drawn for in turn where no prompts are given


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A model, how to draw from it on the devices of a mesh, and how its samples become pictures.

    config: of the run, if the source is a workdir. sample: its section `sample`, with what flags change.
    labels: classes to use in turn, as they were given; empty: as the program says.
    prompts: what a model of text is to show; None for another model.
    about: the source in words.
    """

    model: Model
    config: RunConfig | None
    sample: SampleConfig
    seed: int
    labels: list[int]
    prompts: Prompts | None
    decoder: Decoder
    about: Mapping[str, str]

    @property
    def interpolant(self) -> Interpolant:
        return self.config.interpolant if self.config else Interpolant()

    def sampler(self) -> Sampler:
        return make_sampler(
            nnx.graphdef(self.model), self.interpolant, self.sample, self.decoder.mesh, self.seed, self._null
        )

    def encoder(self) -> Encoder:
        return make_encoder(nnx.graphdef(self.model), self.interpolant, self.sample, self.decoder.mesh, self._null)

    @property
    def _null(self) -> Text | None:
        return self.prompts.null if self.prompts else None

    def conditions(self, labels: Sequence[int] = ()) -> Conditions:
        """What samples are drawn for, by their numbers: the prompts, or the labels, in turn."""
        return self.prompts or (lambda numbers: choose_labels(self.model.cfg, numbers, labels))

    def instead(self, prompts: Sequence[str]) -> "Drawing":
        """The same for other prompts; only for a model of text."""
        assert self.prompts is not None
        return dataclasses.replace(self, prompts=self.prompts.instead(prompts))

    def params(self) -> Params:
        """The model's parameters on every device."""
        return put(params_of(self.model), replicated(self.decoder.mesh))

    def settings(self) -> dict[str, Any]:
        """All that a sample depends on but its number, in plain values."""
        settings = {
            "weights": fingerprint_of(params_of(self.model)),
            "model": dataclasses.asdict(self.model.cfg),
            "interpolant": dataclasses.asdict(self.interpolant),
            "sample": dataclasses.asdict(self.sample),
            "seed": self.seed,
            "labels": self.labels,
        }
        if self.prompts:
            settings["prompts"] = self.prompts.fingerprint
        if (autoencoder := self.decoder.autoencoder) is not None:
            names = ("name", "fingerprint", "scale", "shift")
            settings["autoencoder"] = {name: getattr(autoencoder, name) for name in names}
        return settings


class Autoguided(nnx.Module):
    """A model led away from a weaker one, as one model: `zigma_jax.interpolant.autoguide`."""

    def __init__(self, model: Model, weak: Model, scale: float, interval: tuple[float, ...]):
        self.model, self.weak, self.scale, self.interval = model, weak, scale, interval
        self.cfg = model.cfg

    def __call__(self, x, t, y=None, *, key=None):
        del key
        return autoguide(self.model, self.weak, y, self.scale, self.interval)(x, t)

    def null_condition(self, y):
        return self.model.null_condition(y)


def _autoguided(model: Model, place: str, checkpoint: str, scale: float, cfg: SampleConfig) -> Autoguided:
    """Raises ConfigError for a weaker model that is no model of the same samples and conditions."""
    weak, _ = load_weights(as_path(place), checkpoint=checkpoint)
    for field in ("sample_shape", "num_classes", "null_class", "context_size"):
        ours, theirs = getattr(model.cfg, field), getattr(weak.cfg, field)
        if ours != theirs:
            raise ConfigError(f"--autoguide={place}: its {field} is {theirs}, and the model's is {ours}")
    try:
        check_guidance(scale, cfg.guidance_interval)
    except ConfigError as error:
        raise ConfigError(f"--autoguide_scale: {error}") from None
    return Autoguided(model, weak, scale, cfg.guidance_interval)


def DEFINE_drawing() -> Callable[..., Drawing]:  # noqa: N802 - as absl names its own
    """The flags that say what is drawn. Returns a function that loads the model of a path as they say.

    It finds what is wrong with them before anything is compiled, and raises ConfigError; otherwise as `load_weights`
    and `load_autoencoder`. A model of text for which there are no --prompts is given the captions of the run's data
    set, or those that the function is called with.
    """
    seed = flags.DEFINE_integer("seed", 0, "Of the noise.")
    labels = flags.DEFINE_list("labels", [], "Classes, used in turn; docs/sampling.md says what the default is.")
    weights = flags.DEFINE_string("weights", "ema", "ema, averaged; raw; or ema:0.1, of train.ema_lengths.")
    checkpoint = flags.DEFINE_string("checkpoint", "latest", "Of a workdir: latest, best, or a step.")
    prompts = flags.DEFINE_multi_string(
        "prompts", [], "What a model of text is to show: a sentence (may be repeated), or a file with one a line."
    )
    negative = flags.DEFINE_string("negative", "", "What guidance leads away from, in place of the empty prompt.")
    text_encoder = flags.DEFINE_string(
        "text_encoder",
        None,
        "Of a model of text, if its run does not say: minilm, a directory, or hf://OWNER/REPO.",
    )
    autoencoder = flags.DEFINE_string(
        "autoencoder",
        None,
        "Of a model of latents, if its run does not say: a directory, hf://OWNER/REPO or KIND:PLACE, as in taef2:DIR.",
    )
    numbers = {
        name: flags.DEFINE_list(
            f"autoencoder_{name}", None, f"The {name} of latents, a number or one a channel, if the network's is wrong."
        )
        for name in ("scale", "shift")
    }
    weaker = flags.DEFINE_string(
        "autoguide", None, "A weaker model of the same samples, which guidance leads away from."
    )
    weaker_checkpoint = flags.DEFINE_string("autoguide_checkpoint", "latest", "Of --autoguide, as --checkpoint.")
    weaker_scale = flags.DEFINE_float("autoguide_scale", 2.0, "How far --autoguide leads away; 1 is not at all.")
    changed, family = DEFINE_sample(), DEFINE_family()

    def load(source: AnyPath, mesh: Mesh, captions: Sequence[str] = ()) -> Drawing:
        if not 0 <= seed.value < 2**63:
            raise ConfigError(f"--seed={seed.value}: must be at least 0 and less than 2**63")
        wanted = parse_labels(labels.value)
        changed(SampleConfig())  # whatever is wrong with the flags shows before a large file is read
        about, kind = {"model": str(source)}, family()
        if is_workdir(source):
            model, config, step = load_workdir(source, weights.value, checkpoint.value)
            about |= {"step": str(step), "weights": weights.value}
        else:
            model, config = load_weights(source, weights.value, checkpoint.value, family=kind)
        cfg = changed(config.sample if config else SampleConfig())
        check_guided(model.cfg, cfg.guidance)
        if weaker.value:
            model = _autoguided(model, weaker.value, weaker_checkpoint.value, weaker_scale.value, cfg)
            about |= {"autoguide": f"{weaker.value} at {weaker_scale.value:g}"}
        text = _prompts(model.cfg, config, cfg, source, captions) if model.cfg.context_size else None
        if text is None and (prompts.value or negative.value or text_encoder.value):
            given = "prompts" if prompts.value else "negative" if negative.value else "text_encoder"
            raise ConfigError(f"--{given}: {source} is not conditioned on text (model.context_size = 0)")
        choose_labels(model.cfg, np.arange(1), wanted)
        latent = config.latent if config else LatentConfig()
        if autoencoder.value:
            latent = dataclasses.replace(latent, autoencoder=autoencoder.value, weights=None)  # with the run's scale
            about |= {"autoencoder": autoencoder.value}
        given = {name: _numbers(name, flag.value) for name, flag in numbers.items() if flag.value}
        latent = dataclasses.replace(latent, **given)
        shape = model.cfg.sample_shape
        decoder = Decoder(shape, mesh, open_autoencoder(latent, shape))
        about |= {"method": cfg.method, "seed": str(seed.value)}
        return Drawing(model, config, cfg, seed.value, wanted, text, decoder, about)

    def _prompts(
        model: BackboneConfig, config: RunConfig | None, cfg: SampleConfig, source: AnyPath, captions: Sequence[str]
    ) -> Prompts:
        if labels.value:
            raise ConfigError(f"--labels: {source} is conditioned on text: give --prompts")
        if negative.value and cfg.guidance == 1:
            raise ConfigError("--negative: is what guidance leads away from, and sample.guidance = 1 is none")
        wanted = read_prompts(prompts.value)
        of_run = config.text if config else TextConfig()
        if text_encoder.value:  # the run's fingerprint stays, so that it is no other one
            of_run = dataclasses.replace(of_run, encoder=text_encoder.value, weights=None)
        if not of_run.encoder:
            raise ConfigError(
                f"{source}: does not say which text encoder it was trained with: give it, as in "
                "--text_encoder=hf://openai/clip-vit-large-patch14"
            )
        wanted = wanted or captions or _captions(config)
        return Prompts(open_text_encoder(of_run, model.context_size), wanted, negative.value)

    return load


def _captions(config: RunConfig | None) -> list[str]:
    """Of the run's data set, for a program that was given no prompts."""
    try:
        if config is None:
            raise ConfigError("there is no run whose data set has some")
        source = held_out(config.data)
        return captions_of(source, min(len(source), SHOWN))
    except UserError as error:
        raise ConfigError(f"--prompts is missing, and no captions are at hand ({error})") from error


def _numbers(name: str, given: list[str]) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in given)
    except ValueError as error:
        raise ConfigError(f"--autoencoder_{name}={','.join(given)}: must be a number, or one a channel") from error


def fingerprint_of(params: Params) -> str:
    """SHA-256 of parameters with their names and shapes, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.shape} {values.dtype}".encode())
        digest.update(values.view(np.uint8).data if values.ndim else values.tobytes())
    return digest.hexdigest()

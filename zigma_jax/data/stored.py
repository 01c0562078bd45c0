"""Latents that came with a set of tars, as an encoded set: nothing is encoded to train on them.

They are kept as they were made, one latent a picture: there is neither a deviation to draw with nor a mirror image.
"""

import itertools
from collections.abc import Iterator

from zigma_jax.data.config import DataConfig
from zigma_jax.data.latent_sets import EncodedSet, Rows, fill_share, lay_out, unkeepable, whole_set
from zigma_jax.data.posterior import Autoencoder
from zigma_jax.data.source import Source
from zigma_jax.data.webdataset import FACTOR, TarSource, latent_field
from zigma_jax.errors import ConfigError

_AT_ONCE = 64  # latents read between two moves of the bar


def is_stored(cache: str) -> bool:
    """Whether `latent.cache` asks for the latents of the tars: "stored", or "stored:DIRECTORY"."""
    return cache.partition(":")[0] == "stored"


def stored_set(
    source: Source,
    config: DataConfig,
    autoencoder: Autoencoder,
    *,
    cache: str = "stored",
    process_index: int | None = None,
    process_count: int | None = None,
) -> EncodedSet:
    """The encoded set of the latents in a set of tars, written if it is not there, with a progress bar.

    Its fields are "mean", a latent in the autoencoder's own units, and "label" if there are classes. A latent that is
    missing, unreadable, of another shape, not finite or beyond float16 is counted and named as an unreadable picture
    is. The rest is as in `encoded_set`.

    Args:
        source: the tars.
        config: the size of the pictures; `flip` must be off.
        autoencoder: what decodes the latents. It encodes nothing, and the set is the same for another one.
        cache: "stored": beside the tars' index; "stored:DIRECTORY": in a directory for encoded sets.

    Raises:
        ConfigError: another data set than webdataset, `flip`, or an autoencoder of another factor.
        DataError: no member of the tars holds latents for this size and autoencoder. Otherwise as `encoded_set`.
    """
    if not isinstance(source, TarSource):
        raise ConfigError(
            f"config.latent.cache = {cache!r}: takes the latents of data.name='webdataset', and data.name="
            f"{config.name!r} has none; 'encoded' makes them of its pictures"
        )
    if config.flip:
        raise ConfigError(
            f"config.data.flip = True: must be False with latent.cache={cache!r}, as the tars hold no latents of "
            "mirror images"
        )
    if autoencoder.factor != FACTOR:
        raise ConfigError(
            f"config.latent.autoencoder: {autoencoder.name} has a factor of {autoencoder.factor}, which must be "
            f"{FACTOR} with latent.cache={cache!r}, that of the latents in tars"
        )
    height, width = config.size
    frames = (config.frames,) if config.frames else ()
    shape = (*frames, height // FACTOR, width // FACTOR, autoencoder.channels)
    field = latent_field(source, shape)
    directory = cache.partition(":")[2]
    files = lay_out(
        source.info,
        config.size,
        [("mean", "<f2", shape)],
        {"stored": field},
        f"stored-{field}",
        directory or "encoded",
        elsewhere="latent.cache=stored:DIRECTORY",
    )

    def read(pictures: range) -> Iterator[list[tuple[int, Rows]]]:
        for batch in itertools.batched(pictures, _AT_ONCE):
            yield [(index, _rows(source, index, field, shape)) for index in batch]

    return whole_set(
        files,
        source,
        lambda *share: fill_share(files, source, config, read, *share, doing=f"taking {field} of"),
        process_index,
        process_count,
    )


def _rows(source: TarSource, index: int, field: str, shape: tuple[int, ...]) -> Rows:
    """The one row of a record, or what is wrong with its latent."""
    try:
        latent = source.latent(index, field)
    except Exception as error:  # damage shows as any exception of the reader or parser
        return f"{type(error).__name__}: {error}"
    if latent.shape != shape:
        return f"its {field} is {latent.shape}, not {shape}"
    if reason := unkeepable(f"its {field}", latent):
        return reason
    return [{"mean": latent} | ({"label": source.label(source[index])} if source.info.num_classes else {})]

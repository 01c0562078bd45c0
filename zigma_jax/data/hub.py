"""Data sets of the Hugging Face hub: their parquet files, by `hf://datasets/owner/name[/config][@revision]`."""

import contextlib
import fnmatch
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml
from absl import logging

from zigma_jax.data.splits import by_split, canonical
from zigma_jax.errors import DataError, MissingPackageError

PREFIX = "hf://datasets/"
_CONVERTED = "refs/convert/parquet"  # where the hub keeps its own parquet files of sets that come in other formats
_TIMEOUT = 10.0  # seconds until the hub must have answered


class Place(NamedTuple):
    """A data set of the hub; config empty: the default one; revision None: the newest."""

    repo: str
    config: str
    revision: str | None


def parse(name: str) -> Place:
    """Raises DataError for what is no `hf://datasets/owner/name[/config][@revision]`."""
    path, _, revision = name.removeprefix(PREFIX).partition("@")
    parts = path.strip("/").split("/", 2)
    if not name.startswith(PREFIX) or len(parts) < 2 or not all(re.fullmatch(r"[\w.-]+", part) for part in parts[:2]):
        raise DataError(f"data.name={name!r}: must be {PREFIX}OWNER/NAME, and /CONFIG and @REVISION if wanted")
    return Place("/".join(parts[:2]), parts[2] if len(parts) > 2 else "", revision or None)


def download(name: str) -> tuple[dict[str, list[Path]], str]:
    """The parquet files of a data set by split, from the cache or downloaded to it, and the revision that they are of.

    Raises DataError in one line, within seconds if there is no network, naming the cache and what else can be done.
    """
    place = parse(name)
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise MissingPackageError(
            f"data.name={name!r} needs huggingface_hub: install zigma_jax[hub] ({error})"
        ) from None
    with _in_one_line(name, place):
        files, revision = _list_files(place)
        card = ""
        if "README.md" in files:
            readme = hub.hf_hub_download(place.repo, "README.md", repo_type="dataset", revision=revision)
            card = Path(readme).read_text(encoding="utf-8", errors="replace")
    chosen = choose_files(name, place.config, _parquet(files), card)
    wanted = [re.sub(r"([*?\[])", r"[\1]", file.as_posix()) for of_split in chosen.values() for file in of_split]
    with _in_one_line(name, place):
        root = hub.snapshot_download(place.repo, repo_type="dataset", revision=revision, allow_patterns=wanted)
    return {split: [Path(root) / file for file in of_split] for split, of_split in chosen.items()}, revision


def _list_files(place: Place) -> tuple[list[str], str]:
    """The names of a data set's files and the revision, from the hub; from the cache if it cannot be reached."""
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    api = hub.HfApi()
    try:
        info = api.dataset_info(place.repo, revision=place.revision, timeout=_TIMEOUT)
        if not any(file.rfilename.endswith(".parquet") for file in info.siblings or []):
            info = api.dataset_info(place.repo, revision=_CONVERTED, timeout=_TIMEOUT)
        return [file.rfilename for file in info.siblings or []], str(info.sha)
    except HfHubHTTPError:
        raise
    except Exception as error:  # no network, in any of the ways that HTTP libraries report it, or told not to use it
        for revision in (place.revision, _CONVERTED):
            with contextlib.suppress(LocalEntryNotFoundError):
                found = hub.snapshot_download(place.repo, repo_type="dataset", revision=revision, local_files_only=True)
                files = [path.relative_to(found).as_posix() for path in Path(found).rglob("*") if path.is_file()]
                if _parquet(files):
                    logging.warning("The hub cannot be reached; %s is read from the cache, %s", place.repo, found)
                    return files, Path(found).name
        raise error from None


@contextlib.contextmanager
def _in_one_line(name: str, place: Place) -> Iterator[None]:
    """Turns what goes wrong on the way to the hub into a DataError; a full disk stays what it is."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise DataError(
            f"data.name={name!r}: the hub does not give it ({type(error).__name__}: {_line(error)}). Is the name "
            "right? A set that is private, or that asks for consent, needs `hf auth login`"
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(
            f"data.name={name!r} is not prepared in data.data_dir, its files are not in the cache {HF_HUB_CACHE}, and "
            f"the hub cannot be reached ({type(error).__name__}: {_line(error)}). On a machine with a connection run "
            f"`hf download {place.repo} --repo-type=dataset --local-dir=DIR`, copy DIR here, and set "
            "data.name=parquet data.folder=DIR"
        ) from None


def choose_files(name: str, config: str, files: Iterable[PurePosixPath], card: str) -> dict[str, list[PurePosixPath]]:
    """The parquet files of one configuration by split: as the data set's card says, else by their folders' names.

    card: the text of README.md. Raises DataError for a configuration that isn't there, and naming those that are.
    """
    files = list(files)
    if not files:
        raise DataError(f"data.name={name!r}: there are no parquet files; download it, and use data.name='folder'")
    configs = _configs(card)
    if configs:
        by_name = {str(one.get("config_name", "default")): one for one in configs}
        default = next((key for key, one in by_name.items() if one.get("default")), None)
        key = config or default or ("default" if "default" in by_name else next(iter(by_name)))
        if key not in by_name or (not config and not default and "default" not in by_name and len(by_name) > 1):
            raise DataError(f"data.name={name!r}: choose one of the configurations {', '.join(by_name)}")
        if found := _named_by(by_name[key], files):
            return found
    folders = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    if config:
        inside = [file for file in files if file.is_relative_to(config)]
        if not inside:
            raise DataError(
                f"data.name={name!r}: there is no configuration {config!r}, but {', '.join(folders) or 'one'}"
            )
        return _by_split(inside, PurePosixPath(config))
    if "default" in folders:
        return _by_split([file for file in files if file.parts[0] == "default"], PurePosixPath("default"))
    known = by_split([PurePosixPath(folder) for folder in folders], PurePosixPath())
    if len(folders) > 1 and len(known) < len(folders):
        raise DataError(f"data.name={name!r}: choose one of the configurations {', '.join(folders)}")
    return _by_split(files, PurePosixPath())


def _by_split(files: list[PurePosixPath], root: PurePosixPath) -> dict[str, list[PurePosixPath]]:
    partial = next((file for file in files if file.parts and any(p.startswith("partial-") for p in file.parts)), None)
    if partial:
        raise DataError(f"{partial}: the hub has converted only a part of this set; download its own files instead")
    return by_split(files, root)


def _configs(card: str) -> list[dict[str, Any]]:
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card, re.DOTALL)
    try:
        header = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return []
    configs = header.get("configs") if isinstance(header, dict) else None
    return [one for one in configs or [] if isinstance(one, dict) and one.get("data_files")]


def _named_by(config: dict[str, Any], files: list[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
    """The files that a configuration of a card names, by split; none if it names no parquet files."""
    data_files = config["data_files"]
    entries = data_files if isinstance(data_files, list) else [data_files]
    found: dict[str, list[PurePosixPath]] = {}
    for entry in entries:
        split, patterns = (entry.get("split", "train"), entry["path"]) if isinstance(entry, dict) else ("train", entry)
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            of_split = [file for file in files if fnmatch.fnmatchcase(file.as_posix(), pattern)]
            if of_split:
                by_split(of_split, PurePosixPath())  # refuses to go on if some are missing
                found.setdefault(canonical(split), []).extend(sorted(of_split))
    return found


def _parquet(files: Iterable[str]) -> list[PurePosixPath]:
    return [PurePosixPath(file) for file in files if file.endswith(".parquet")]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

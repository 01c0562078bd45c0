"""Where weights come from, for every network: a directory, a file, or a place on the Hugging Face hub.

    weights = find_weights("hf://stabilityai/sd-vae-ft-ema")
    weights.config()                    # of config.json
    file = weights.open()               # a WeightFile: takes tensors by name
    weights.place                       # with the revision that was read, for a run's record

A directory is laid out as on the hub: `config.json` and the weights in `model.safetensors`,
`diffusion_pytorch_model.safetensors`, `pytorch_model.bin`, or in shards with an index.
"""

import json
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from zigma_jax.errors import WeightsError
from zigma_jax.networks.hub import HubRepository, parse_place
from zigma_jax.networks.weight_file import WeightFile, what_it_is

# Best first: safetensors before pickles, one file before shards.
_STEMS = [
    (f"{stem}.safetensors", f"{stem}.safetensors.index.json") for stem in ("diffusion_pytorch_model", "model")
] + [(f"{stem}.bin", f"{stem}.bin.index.json") for stem in ("diffusion_pytorch_model", "pytorch_model")]
_PREFERRED = [name for names in _STEMS for name in names]
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# Other versions of the weights beside them, as in model.fp16.safetensors: read only where a place names them.
_VARIANT = re.compile(r"\.(fp16|bf16|fp8|int8|ema|non_ema|onnx)[.-]")
_INDEX = ".index.json"


class MissingWeightsError(WeightsError, FileNotFoundError):
    """There are no weights in the place given, or no such place."""


class _LocalFolder:
    """A folder's files by name; the names of files elsewhere are relative to it ("../tokenizer/vocab.json")."""

    def __init__(self, folder: Path):
        self._path = folder

    def names(self) -> list[str]:
        return sorted(path.name for path in self._path.iterdir() if path.is_file())

    def folders(self) -> list[str]:
        return sorted(path.name for path in self._path.iterdir() if path.is_dir() and path.name[0] != ".")

    def path(self, name: str) -> Path | None:
        path = self._path / name
        return path if path.is_file() else None

    def within(self, name: str) -> "_LocalFolder":
        return _LocalFolder(self._path / name)


class _HubFolder:
    """The same of a folder in a repository."""

    def __init__(self, repository: HubRepository, folder: str):
        self._repository, self._prefix = repository, f"{folder}/" if folder else ""

    def names(self) -> list[str]:
        return sorted(name for name in self._inside() if "/" not in name)

    def folders(self) -> list[str]:
        return sorted({name.split("/")[0] for name in self._inside() if "/" in name})

    def path(self, name: str) -> Path | None:
        name = posixpath.normpath(self._prefix + name)
        return self._repository.fetch(name) if name in self._repository.names else None

    def within(self, name: str) -> "_HubFolder":
        return _HubFolder(self._repository, self._prefix + name)

    def _inside(self) -> list[str]:
        start = len(self._prefix)
        return [name[start:] for name in self._repository.names if name.startswith(self._prefix)]


class Weights:
    """A network's files; those on the hub are downloaded when they are asked for.

    Attributes:
        place: where they are; on the hub with the commit that is read, `hf://owner/repository/path@commit`.
        revision: that commit's hash; None for local files.
        file: the file's name, if the place is one; None for a folder.
    """

    def __init__(
        self, place: str, folder: _LocalFolder | _HubFolder, file: str | None, *, revision: str | None, advice: str
    ):
        self.place, self.revision = place, revision
        self._folder, self.file, self._advice = folder, file, advice

    @property
    def names(self) -> list[str]:
        """The files in the folder."""
        return self._folder.names()

    @property
    def folders(self) -> list[str]:
        """The folders in the folder."""
        return self._folder.folders()

    def within(self, folder: str) -> "Weights":
        """What is in a folder of the folder."""
        top, at, commit = self.place.rpartition("@") if self.revision else (self.place, "", "")
        place = f"{top.rstrip('/')}/{folder}{at}{commit}"
        return Weights(place, self._folder.within(folder), None, revision=self.revision, advice=self._advice)

    def path(self, name: str) -> Path | None:
        """The local path of a file in the folder, or beside it ("../tokenizer/vocab.json"); None if there is none.

        Raises HubError if it is on the hub and cannot be downloaded.
        """
        return self._folder.path(name)

    def json(self, name: str) -> dict[str, Any] | None:
        """What a file of JSON holds; None if there is no such file. Raises WeightsError if it is something else."""
        path = self.path(name)
        return None if path is None else _read_json(path)

    def config(self) -> dict[str, Any]:
        """What config.json says: the one in the folder, or beside the file. Raises WeightsError if there is none."""
        config = self.json("config.json")
        if config is None:
            self._refuse("there is no config.json, which says what network this is")
        return config

    def files(self, *names: str) -> list[Path]:
        """Local paths of the files that hold the weights: those named, else the file or the best in the folder."""
        return [self._need(name) for chosen in names or [self._choose()] for name in self._shards(chosen)]

    def open(self, *names: str, rename: Callable[[str, Path], str] | None = None) -> WeightFile:
        """The tensors of those `files`; `rename` as for `WeightFile`."""
        return WeightFile(*self.files(*names), place=self.place, rename=rename)

    def _choose(self) -> str:
        if self.file is not None:
            return self.file
        names = self.names
        for name in _PREFERRED:
            if name in names:
                return name
        others = [name for name in names if name.endswith(_SUFFIXES)]
        plain = [name for name in others if not _VARIANT.search(name)]
        if len(plain) == 1:
            return plain[0]
        if others:
            self._refuse(f"which of {_listed(others)} is meant? Give the place of one of them")
        folders = self._folder.folders()
        self._refuse("there are no weights here" + f", but there are the folders {_listed(folders)}" * bool(folders))

    def _shards(self, name: str) -> list[str]:
        """The files that an index names, or the one that is no index."""
        if not name.endswith(_INDEX):
            return [name]
        parts = (self.json(name) or {}).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
            self._refuse(f"{name} has no weight_map of tensors to files")
        shards = sorted(set(parts.values()))
        if any(posixpath.basename(shard) != shard for shard in shards):
            self._refuse(f"{name} names files outside its folder")
        return [posixpath.join(posixpath.dirname(name), shard) for shard in shards]

    def _need(self, name: str) -> Path:
        path = self.path(name)
        if path is None:
            self._refuse(f"the file {name} is missing")
        return path

    def _refuse(self, reason: str) -> NoReturn:
        raise MissingWeightsError(f"{self.place}: {reason}. {self._advice}".rstrip(" "))


def find_weights(place: str | os.PathLike[str], *, where: str = "", flag: str = "weights") -> Weights:
    """The weights in a place, of which nothing large is read or downloaded yet.

    Args:
        place: a directory in the hub's layout, a file (.safetensors, or PyTorch's .pt, .pth, .bin), or
            `hf://owner/repository[/path][@revision]` where the path is that of a folder or a file.
        where: a sentence for errors that says where the weights of this network are to be had.
        flag: for errors: what the place was given as, such as "--autoencoder".

    Raises:
        MissingWeightsError: no such file or directory, no such path in a repository.
        HubError: no such repository or revision, no permission, no network.
        ConfigError: a place on the hub that is not written so.
        MissingPackageError: a place on the hub, without the package `huggingface_hub`.
    """
    name = os.fspath(place)
    if name.startswith("hf://"):
        return _on_hub(name, where, flag)
    path = Path(name).expanduser()
    if path.is_dir():
        return Weights(name, _LocalFolder(path), None, revision=None, advice=where)
    if path.is_file():
        return Weights(name, _LocalFolder(path.parent), path.name, revision=None, advice=where)
    address = re.fullmatch(r"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+).*", name)
    repository = address[1] if address else name if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) else None
    hint = f"If it is on the hub, give hf://{repository}. " if repository else ""
    raise MissingWeightsError(f"{flag}: {name} is not a file or directory. {hint}{where}".rstrip())


def _on_hub(place: str, where: str, flag: str) -> Weights:
    repository_name, path, revision = parse_place(place)
    repository = HubRepository(repository_name, revision, flag=flag)
    folder, file = path, None
    if path in repository.names:
        folder, file = posixpath.split(path)
    read = f"hf://{repository_name}{f'/{path}' * bool(path)}@{repository.revision}"
    advice = where if repository.unreached is None else f"{repository.unreached}. {repository.how_to_do_without()}"
    weights = Weights(read, _HubFolder(repository, folder), file, revision=repository.revision, advice=advice)
    if path and file is None and not any(name.startswith(f"{path}/") for name in repository.names):
        top = sorted({name.split("/")[0] + "/" * ("/" in name) for name in repository.names})
        raise MissingWeightsError(f"{read}: there is no {path}, but {_listed(top)}. {advice}".rstrip())
    return weights


def _read_json(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    if other := what_it_is(data[:512]):
        raise WeightsError(f"{path}: {other}")
    try:
        value = json.loads(data)
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: not a JSON object, names with values")
    return value


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + f" and {len(names) - 12} more" * (len(names) > 12)

"""Captions to token ids, by the library `tokenizers` and the files beside an encoder's weights.

These are `tokenizer.json`, or `vocab.json` with `merges.txt` (CLIP), or `vocab.txt` (BERT). They may also lie in the
folder `tokenizer` beside the encoder's, as in the repositories of whole diffusion models.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Int32

from zigma_jax.errors import ConfigError, MissingPackageError, WeightsError
from zigma_jax.networks.sources import Weights

_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
_SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")  # the second wins
# How CLIP splits its lower-case text: special tokens, English endings, words, single digits, and the rest.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """What an encoder's directory says about captions; read at first use, so that ids can be encoded without it.

    Args:
        source: the encoder's files.
        length: the most tokens of a caption, the special ones included; where the tokenizer itself says less, that.
        padded: every caption becomes `length` tokens, as CLIP was trained; else as many as the longest one has.

    Attributes:
        length: the most tokens.
        padded: whether every caption becomes `length` tokens, all of which are seen.
        truncated: how many captions were cut so far.
    """

    def __init__(self, source: Weights, *, length: int, padded: bool):
        self._place, self.padded = source.place, padded
        self._files = _found(source, "") or _found(source, "../tokenizer/")
        self.length = length if padded else min([length, *_limits(self._files)])
        self.truncated = 0

    @property
    def there(self) -> bool:
        """Whether there are files to make tokens by."""
        return bool({"tokenizer.json", "vocab.json", "vocab.txt"} & self._files.keys())

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the tokenizer's files: token ids are comparable where it is equal."""
        digest = hashlib.sha256()
        for name, path in sorted(self._files.items()):
            digest.update(repr((name, hashlib.sha256(path.read_bytes()).hexdigest())).encode())
        return digest.hexdigest()

    def __call__(
        self, captions: Sequence[str], length: int | None = None
    ) -> tuple[Int32[np.ndarray, "b m"], Bool[np.ndarray, "b m"]]:
        """See `TextEncoder.tokenize`."""
        if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
            raise ConfigError(f"captions are {type(captions).__name__}: they must be a list of strings")
        if length is not None and not 2 <= length <= self.length:
            raise ConfigError(f"length = {length}: it must be from 2 to {self.length}")
        tokenizer, pad = self._tokenizer
        tokenizer.enable_truncation(length or self.length)
        # What is no text (a lone half of a surrogate pair) becomes a question mark.
        encoded = tokenizer.encode_batch([caption.encode("utf-8", "replace").decode() for caption in captions])
        cut = [caption for caption, encoding in zip(captions, encoded, strict=True) if encoding.overflowing]
        self._report(cut, length or self.length)

        if length is None:
            length = self.length if self.padded else max((len(encoding.ids) for encoding in encoded), default=2)
        ids = np.full((len(encoded), length), pad, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, seen, encoding in zip(ids, mask, encoded, strict=True):
            row[: len(encoding.ids)] = encoding.ids
            seen[: len(encoding.ids)] = True
        return ids, mask | self.padded

    def _report(self, cut: list[str], length: int) -> None:
        if cut and not self.truncated:
            logging.warning(
                "Captions of more than %d tokens are cut, which is said once: %d here, the first of them %r",
                length,
                len(cut),
                cut[0][:60],
            )
        self.truncated += len(cut)

    @functools.cached_property
    def _tokenizer(self) -> tuple[Any, int]:
        """The library's tokenizer, which truncates and does not pad, and the id for padding."""
        if not self.there:
            raise WeightsError(
                f"{self._place}: there is no tokenizer ({_FILES[0]}, or {_FILES[1]} and {_FILES[2]}, or {_FILES[3]}), "
                "here or in ../tokenizer: lay it there, or give token ids to `encode`"
            )
        try:
            import tokenizers
        except ImportError as error:
            raise MissingPackageError(
                "captions become tokens by the package tokenizers: pip install tokenizers (the extra `text` has it)"
            ) from error
        settings = _settings(self._files)
        try:
            if "tokenizer.json" in self._files:
                tokenizer = tokenizers.Tokenizer.from_file(str(self._files["tokenizer.json"]))
            elif "vocab.json" in self._files:
                tokenizer = _clip(self._files, self._place)
            else:
                tokenizer = _bert(self._files, settings, self._place)
        except WeightsError:
            raise
        except Exception as error:  # the library raises nothing more precise
            raise WeightsError(f"{self._place}: the tokenizer is damaged or of another kind ({error})") from error
        tokenizer.no_padding()
        default = "<|endoftext|>" if self.padded else "[PAD]"
        return tokenizer, _id(tokenizer, settings.get("pad_token") or default, self._place)


def _found(source: Weights, folder: str) -> dict[str, Path]:
    paths = {name: source.path(f"{folder}{name}") for name in _FILES}
    if not any(paths.values()):
        return {}
    paths |= {name: source.path(f"{folder}{name}") for name in _SETTINGS}
    return {name: path for name, path in paths.items() if path is not None}


def _settings(files: dict[str, Path]) -> dict[str, Any]:
    """What the files of settings say; a token may stand there with its properties."""
    settings: dict[str, Any] = {}
    for name in _SETTINGS:
        if name in files:
            settings |= _read(files[name])
    return {key: value.get("content") if isinstance(value, dict) else value for key, value in settings.items()}


def _limits(files: dict[str, Path]) -> list[int]:
    """The lengths that a tokenizer's own files ask for."""
    truncation = _read(files["tokenizer.json"]).get("truncation") if "tokenizer.json" in files else None
    limits = [_settings(files).get("model_max_length"), truncation and truncation.get("max_length")]
    return [limit for limit in limits if isinstance(limit, int) and limit > 0]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON ({error})") from error
    return value if isinstance(value, dict) else {}


def _clip(files: dict[str, Path], place: str) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    if "merges.txt" not in files:
        raise WeightsError(f"{place}: merges.txt is missing, which belongs to vocab.json")
    start, end = "<|startoftext|>", "<|endoftext|>"
    model = models.BPE.from_file(
        str(files["vocab.json"]), str(files["merges.txt"]), end_of_word_suffix="</w>", unk_token=end
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([start, end])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        *((token, _id(tokenizer, token, place)) for token in (end, start)), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def _bert(files: dict[str, Path], settings: dict[str, Any], place: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece.from_file(str(files["vocab.txt"]), unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        *((token, _id(tokenizer, token, place)) for token in ("[SEP]", "[CLS]"))
    )
    return tokenizer


def _id(tokenizer: Any, token: str, place: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise WeightsError(f"{place}: the tokenizer has no token {token!r}")
    return found

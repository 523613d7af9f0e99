"""Text to padded ids: the checkpoint's own tokenizer file through the `tokenizers` package, the family's cleaning and padding.

Always padded to the full context: SigLIP attends to its padding and pools the last position, so text of another
length silently gives other features.
"""

from __future__ import annotations

import html
import re
import string
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from regcache_jax.encoders.spec import Tokenization
from regcache_jax.errors import UserError

TOKENIZER_FILE = "tokenizer.json"


def _collapse(text: str) -> str:
    return " ".join(text.split())


def _canonicalize(text: str) -> str:
    """big_vision's and open_clip's cleaning for SigLIP: underscores to spaces, punctuation dropped, lower case."""
    return _collapse(text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower())


CLEANING: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "lower": str.lower,
    "canonicalize": _canonicalize,
    "clip": lambda text: _collapse(html.unescape(html.unescape(unicodedata.normalize("NFC", text)))).lower(),
}


class Tokenizer:
    """Callable: texts -> int32 ids `[n, context_length]`. Long text is cut, its end-of-text kept."""

    def __init__(self, spec: Tokenization, encode: Callable[[str], list[int]]) -> None:
        self.spec = spec
        self._encode = encode

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "n T"]:
        """Cleans, encodes, adds begin and end, cuts and pads."""
        spec = self.spec
        ids = np.full((len(texts), spec.context_length), spec.pad_id, np.int32)
        ends = [] if spec.eos_id is None else [spec.eos_id]
        begins = [] if spec.bos_id is None else [spec.bos_id]
        for row, text in enumerate(texts):
            words = self._encode(CLEANING[spec.cleaning](text))
            room = spec.context_length - len(begins) - len(ends)
            sentence = begins + words[:room] + ends
            ids[row, : len(sentence)] = sentence
        if ids.size and not (ids.min() >= 0 and ids.max() < spec.vocab_size):
            raise UserError(
                f"the tokenizer gives ids up to {ids.max()}, the encoder knows {spec.vocab_size}; files do not match"
            )
        return ids


def hashed_ids(text: str, spec: Tokenization) -> list[int]:
    """The bundled encoder's ids: each word as <word> and its character trigrams, by CRC-32 into 1..vocab_size - 1."""
    pieces: list[str] = []
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        bracketed = f"<{word}>"
        pieces += [bracketed, *(bracketed[i : i + 3] for i in range(len(bracketed) - 2))]
    return [1 + zlib.crc32(piece.encode()) % (spec.vocab_size - 1) for piece in pieces]


def load_tokenizer(spec: Tokenization, folder: epath.PathLike) -> Tokenizer:
    """The tokenizer of a model folder. Raises UserError where its file is missing or damaged."""
    if spec.kind == "hashed":
        return Tokenizer(spec, lambda text: hashed_ids(text, spec))
    file = epath.Path(folder) / TOKENIZER_FILE
    if not file.exists():
        raise UserError(f"{folder} has no {TOKENIZER_FILE}; convert it again with --tokenizer FILE_OR_FOLDER")
    stored = _read(file.read_text(), str(file))
    special = {name for name in (spec.bos_id, spec.eos_id, spec.pad_id) if name is not None}

    def encode(text: str) -> list[int]:
        ids = stored.encode(text, add_special_tokens=False).ids
        return [number for number in ids if spec.kind != "clip" or number not in special]

    return Tokenizer(spec, encode)


def _read(text: str, name: str) -> Any:
    import tokenizers

    try:
        stored = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the package raises bare Exception
        raise UserError(f"{name} is not a tokenizer file: {error}") from None
    stored.no_padding()
    stored.no_truncation()
    return stored

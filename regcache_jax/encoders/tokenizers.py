"""Text to padded ids: the checkpoint's own tokenizer files, the family's cleaning and padding.

Read in this order: `tokenizer.json`, CLIP's `vocab.json` with `merges.txt` (both through the `tokenizers` package), and
`*.model` (SentencePiece, where the `sentencepiece` package is installed).

Always padded to the full context: SigLIP attends to its padding and pools the last position, so text of another
length silently gives other features.
"""

from __future__ import annotations

import html
import json
import re
import string
import unicodedata
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath
from jaxtyping import Int

from regcache_jax.encoders.spec import Tokenization
from regcache_jax.errors import UserError

TOKENIZER_FILE, VOCABULARY_FILE, MERGES_FILE = "tokenizer.json", "vocab.json", "merges.txt"


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
    """The tokenizer of a model folder. Raises UserError where its files are missing or damaged."""
    if spec.kind == "hashed":
        return Tokenizer(spec, lambda text: hashed_ids(text, spec))
    encode = _find(spec, epath.Path(folder))
    special = {name for name in (spec.bos_id, spec.eos_id, spec.pad_id) if name is not None}

    def words_only(text: str) -> list[int]:
        return [number for number in encode(text) if spec.kind != "clip" or number not in special]

    return Tokenizer(spec, words_only)


def _find(spec: Tokenization, folder: epath.Path) -> Callable[[str], list[int]]:
    """The files' own encoding, without special tokens."""
    if (folder / TOKENIZER_FILE).exists():
        return _fast(folder / TOKENIZER_FILE)
    if spec.kind == "clip" and (folder / VOCABULARY_FILE).exists() and (folder / MERGES_FILE).exists():
        return _byte_pairs(folder / VOCABULARY_FILE, folder / MERGES_FILE)
    model = _sentencepiece_file(folder)
    if spec.kind == "sentencepiece" and model is not None:
        return _sentencepiece(model)
    expected = f"{VOCABULARY_FILE} with {MERGES_FILE}" if spec.kind == "clip" else "a SentencePiece .model file"
    raise UserError(
        f"{folder} has neither {TOKENIZER_FILE} nor {expected}; convert it again with --tokenizer FILE_OR_FOLDER"
    )


def _fast(file: epath.Path) -> Callable[[str], list[int]]:
    import tokenizers

    try:
        stored = tokenizers.Tokenizer.from_str(file.read_text())
    except Exception as error:  # the package raises bare Exception
        raise UserError(f"{file} is not a tokenizer file: {error}") from None
    stored.no_padding()
    stored.no_truncation()
    return lambda text: stored.encode(text, add_special_tokens=False).ids


def _byte_pairs(vocabulary: epath.Path, merges: epath.Path) -> Callable[[str], list[int]]:
    """CLIP's byte-level BPE from its two older files. Words end in `</w>`; digits stand alone."""
    import tokenizers

    pieces = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    lines = merges.read_text().splitlines()
    try:
        pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        model = tokenizers.models.BPE(
            json.loads(vocabulary.read_text()),
            pairs,
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token="<|endoftext|>",
        )
    except Exception as error:  # the package raises bare Exception
        raise UserError(f"{vocabulary} and {merges.name} are not the files of one BPE tokenizer: {error}") from None
    stored = tokenizers.Tokenizer(model)
    stored.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    stored.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pieces), behavior="removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return lambda text: stored.encode(text, add_special_tokens=False).ids


def _sentencepiece_file(folder: epath.Path) -> epath.Path | None:
    """The folder's SentencePiece model, if it has exactly one."""
    files = sorted(folder.glob("*.model"))
    return files[0] if len(files) == 1 else None


def _sentencepiece(file: epath.Path) -> Callable[[str], list[int]]:
    try:
        import sentencepiece
    except ImportError:
        raise UserError(
            f"{file} needs the sentencepiece package (pip install sentencepiece), or give the same tokenizer as {TOKENIZER_FILE}"
        ) from None
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
    except RuntimeError as error:
        raise UserError(f"{file} is not a SentencePiece model: {error}") from None
    return processor.encode

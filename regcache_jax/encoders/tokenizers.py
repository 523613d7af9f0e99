"""Text to padded ids: the checkpoint's own tokenizer files, the family's cleaning and padding.

Read in this order: `tokenizer.json`, CLIP's `vocab.json` with `merges.txt`, OpenAI's and open_clip's
`bpe_simple_vocab_16e6.txt.gz` (all through the `tokenizers` package), and `*.model` (SentencePiece, where the
`sentencepiece` package is installed).

Always padded to the full context: SigLIP attends to its padding and pools the last position, so text of another
length silently gives other features. `check_ids` refuses such ids.
"""

from __future__ import annotations

import html
import re
import string
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Tokenization
from regcache_jax.encoders.words import MERGES_FILE, ORIGINAL_FILE, TOKENIZER_FILE, VOCABULARY_FILE, read_tried
from regcache_jax.files.bounded import TEXT_LIMIT, read_bytes
from regcache_jax.files.places import as_path

FILES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "clip": ((TOKENIZER_FILE,), (VOCABULARY_FILE, MERGES_FILE), (ORIGINAL_FILE,)),
    "sentencepiece": ((TOKENIZER_FILE,), ("*.model",)),
    "xlm": ((TOKENIZER_FILE,),),  # its `*.model` numbers words otherwise
    "bert": ((TOKENIZER_FILE,),),
    "hashed": (),
}
"""For each kind of tokenizer the sets of files that hold it, the preferred one first; `*.model` counts where there is one."""


def _collapse(text: str) -> str:
    return " ".join(text.split())


def _without_punctuation(text: str) -> str:
    return _collapse(text.lower().translate(str.maketrans("", "", string.punctuation)))


def _lower_by_character(text: str) -> str:
    """Lower case as the `tokenizers` package has it: a character at a time (a final sigma is a sigma)."""
    import tokenizers

    return tokenizers.normalizers.Lowercase().normalize_str(text)


def _lower_ascii(text: str) -> str:
    """Lower case as TensorFlow's `tf.strings.lower` has it: A to Z alone."""
    return text.translate({ord(letter): letter.lower() for letter in string.ascii_uppercase})


# One character for several, wide ones for narrow ones, curled quotes for straight ones: what ftfy does to sound text.
_COMPATIBLE = [*range(0xFB00, 0xFB07), *range(0xFF01, 0xFFF0), 0x132, 0x133, 0x3000]
_FIXES = {number: unicodedata.normalize("NFKC", chr(number)) for number in _COMPATIBLE}
_FIXES |= dict.fromkeys([0x2BC, *range(0x2018, 0x201C)], "'") | dict.fromkeys(range(0x201C, 0x2020), '"')


def _whitespace(text: str) -> str:
    """open_clip's cleaning for sound text: it also repairs text that was decoded wrongly, which we do not."""
    fixed = unicodedata.normalize("NFC", html.unescape(text).translate(_FIXES))
    shown = "".join(letter for letter in fixed if letter.isspace() or unicodedata.category(letter) != "Cc")
    return _collapse(html.unescape(shown.replace("\ufeff", "")))


CLEANING: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,  # Hugging Face's CLIP: its tokenizer cleans
    "lower": _lower_by_character,  # SigLIP 2 in transformers
    "lower_ascii": _lower_ascii,  # SigLIP 2 in big_vision
    "canonicalize": lambda text: _without_punctuation(text.replace("_", " ")),  # SigLIP in big_vision and open_clip
    "drop_punctuation": _without_punctuation,  # SigLIP in transformers: here an underscore joins two words
    "clip": lambda text: _whitespace(text).lower(),  # OpenAI's too
    "whitespace": _whitespace,  # BERT's words in open_clip, which are lower case by themselves
}


def find_files(kind: str, folder: epath.PathLike) -> list[epath.Path]:
    """The files of a folder that hold its tokenizer, the preferred set of them; empty if none is complete."""
    for patterns in FILES[kind]:
        found = [sorted(as_path(folder).glob(pattern)) for pattern in patterns]
        if all(len(files) == 1 for files in found):
            return [file for (file,) in found]
    return []


def expected_files(kind: str) -> str:
    """What `find_files` looks for, in words."""
    return " or ".join(" with ".join(names) for names in FILES[kind])


def check_ids(ids: Int[Array | np.ndarray, "n T"], spec: Tokenization, *, padding_seen: bool) -> None:
    """Raises UserError for ids that are not cut, ended and (where the tower looks at its padding: SigLIP's, and others that are not
    causal) padded as the encoder was trained; inside `jit`, where their values are not known, for their length alone."""
    what = f"token ids should be as the model's own tokenizer makes them: [n, {spec.context_length}]"
    if ids.shape[1] != spec.context_length:
        raise UserError(f"{what}; these are [n, {ids.shape[1]}]")
    if isinstance(ids, jax.core.Tracer):
        return
    ids = np.asarray(ids)
    if ids.size and not (ids.min() >= 0 and ids.max() < spec.vocab_size):
        raise UserError(f"{what}, ids in 0..{spec.vocab_size - 1}; these reach from {ids.min()} to {ids.max()}")
    if spec.eos_id is None:
        return
    ends = ids == spec.eos_id
    behind = np.cumsum(ends, axis=1) - ends > 0  # behind the first end
    wrong = ~ends.any(axis=1) | padding_seen & (behind & (ids != spec.pad_id)).any(axis=1)
    if wrong.any():
        padding = f", then {spec.pad_id} to the end" if padding_seen else ""
        raise UserError(f"{what}, one {spec.eos_id} behind the text{padding}; row {int(np.argmax(wrong))} is not")


class Tokenizer:
    """Callable: texts -> int32 ids `[n, context_length]`. Long text is cut, its end-of-text kept."""

    def __init__(self, spec: Tokenization, encode: Callable[[str], list[int]]) -> None:
        self.spec = spec
        self._encode = encode

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "n T"]:
        """Cleans, encodes, adds begin and end, cuts and pads."""
        spec = self.spec
        ids = np.full((len(texts), spec.context_length), spec.pad_id, np.int64)  # ids in files have up to 32 bits
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
        return ids.astype(np.int32)


def hashed_ids(text: str, spec: Tokenization) -> list[int]:
    """The bundled encoder's ids: each word as <word> and its character trigrams, by CRC-32 into 1..vocab_size - 1."""
    pieces: list[str] = []
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        bracketed = f"<{word}>"
        pieces += [bracketed, *(bracketed[i : i + 3] for i in range(len(bracketed) - 2))]
    return [1 + zlib.crc32(piece.encode()) % (spec.vocab_size - 1) for piece in pieces]


def load_tokenizer(spec: Tokenization, folder: epath.PathLike) -> Tokenizer:
    """The tokenizer of a model folder. Raises UserError where its files are missing or damaged, or fail their trial."""
    if spec.kind == "hashed":
        return Tokenizer(spec, lambda text: hashed_ids(text, spec))
    files = find_files(spec.kind, folder)
    if not files:
        raise UserError(
            f"{folder} has no tokenizer ({expected_files(spec.kind)}); convert it again with --tokenizer FILE_OR_FOLDER"
        )
    encode = read_tried({str(file): read_bytes(file, TEXT_LIMIT) for file in files}, spec.vocab_size)
    marks = {number for number in (spec.bos_id, spec.eos_id, spec.pad_id) if number is not None}
    if spec.kind == "clip":
        marks.discard(0)  # its padding is a word as well: an exclamation mark

    def words_only(text: str) -> list[int]:
        return [number for number in encode(text) if number not in marks]

    return Tokenizer(spec, words_only)

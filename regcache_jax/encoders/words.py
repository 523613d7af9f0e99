"""Tokenizer files as a function from text to ids; and the trial of such files in a process of its own.

The libraries that read them are written in Rust and C++: a file can make them abort, run without end or take all memory. So a file is
first read in a child (this module, run as a program), with bounded time and memory, where a few texts are encoded; what passes is
remembered by its SHA-256. This module imports neither JAX nor NumPy, so that the child is quick.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import pydantic

from regcache_jax.core.errors import UserError, installing, shown
from regcache_jax.files.bounded import decode, parse_json

TOKENIZER_FILE, VOCABULARY_FILE, MERGES_FILE = "tokenizer.json", "vocab.json", "merges.txt"
ORIGINAL_FILE = "bpe_simple_vocab_16e6.txt.gz"
Encode = Callable[[str], list[int]]
Contents = Mapping[str, bytes]
"""Name of a file (its path, for messages) -> its bytes, read once."""

LARGEST_ID = 1 << 24
SECONDS, MEMORY = 20, 1 << 32
"""What the trial of a file may take: seconds of a processor, and bytes. XLM-V's 901,629 words take 8 of them, and 2.5 GiB."""
_PATIENCE = 120  # seconds by the clock, for machines that are busy
_TEXTS = ("a photo of a cat", "", "Ünïcode 猫 🐈 ¿1234?\n", "word " * 200, "a" * 2000, "!" * 500, " " * 500)
_LARGEST_MERGES = 1 << 24  # bytes; CLIP's list of merges has 3.2 MiB
_START, _END = "<|startoftext|>", "<|endoftext|>"
_PROGRAM = "regcache_jax.encoders.words"
_tried: set[str] = set()


def read_tried(contents: Contents, vocab_size: int) -> Encode:
    """The function of files that have passed their trial; what is raised later, when a text is encoded, is one line as well.

    Raises UserError for files that do not pass, with the reason."""
    from regcache_jax.files.identity import Digest, sha256  # which needs JAX; the child does without

    digest = Digest().json([vocab_size, *([_name(file), sha256(content)] for file, content in contents.items())]).hex()
    if digest not in _tried:
        _try(contents, vocab_size)
        _tried.add(digest)
    encode = read(contents, vocab_size)

    def encode_safely(text: str) -> list[int]:
        with _in_one_line(contents, "cannot encode a text"):
            return encode(text)

    return encode_safely


def read(contents: Contents, vocab_size: int) -> Encode:
    """The function of one set of files. Raises UserError for files that are not what their names say."""
    reader, fault = _READERS.get(_name(next(iter(contents))), (_sentencepiece, "is not a SentencePiece model"))
    with _in_one_line(contents, fault):
        return reader(contents, vocab_size)


def _name(file: str) -> str:
    return file.rpartition("/")[2]


@contextlib.contextmanager
def _in_one_line(contents: Contents, fault: str) -> Iterator[None]:
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise UserError(f"{' and '.join(contents)} {fault}: {shown(str(error) or type(error).__name__)}") from None


def _try(contents: Contents, vocab_size: int) -> None:
    """Runs this module on the files. Raises UserError with what the child says, or with how it ended."""
    head = json.dumps({"vocab_size": vocab_size, "sizes": {name: len(content) for name, content in contents.items()}})
    path = [str(Path(__file__).parents[2]), *filter(None, sys.path)]  # never the folder one happens to stand in
    quiet = {"PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1"}
    what = " and ".join(contents)
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", _PROGRAM],
            input=b"\n".join([head.encode(), b"".join(contents.values())]),
            capture_output=True,
            env={**os.environ, **quiet},
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{what} cannot be used: reading it takes more than {_PATIENCE} seconds") from None
    if child.returncode == 0:
        return
    if child.returncode == 1 and child.stdout:
        raise UserError(child.stdout.decode(errors="replace").strip())
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise UserError(f"{what} cannot be used: reading it takes more than {SECONDS} seconds of a processor")
    said = child.stderr.decode(errors="replace").strip().splitlines() or ["nothing was said"]
    raise UserError(
        f"{what} cannot be used: it ends the library that reads it (status {child.returncode}, within {MEMORY >> 30} GiB: "
        f"{shown(said[-1])})"
    )


def _trial() -> None:
    """The child: bounds itself, reads the files from its standard input, encodes a few texts."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    head = json.loads(sys.stdin.buffer.readline())
    contents = {name: sys.stdin.buffer.read(size) for name, size in head["sizes"].items()}
    try:
        encode = read(contents, head["vocab_size"])
        with _in_one_line(contents, "cannot encode a text"):
            largest = max(number for text in _TEXTS for number in [0, *encode(text)])
        if largest >= LARGEST_ID:
            raise UserError(f"{' and '.join(contents)} gives the id {largest}, above {LARGEST_ID}")
    except UserError as error:
        print(error)
        sys.exit(1)


def _fast(contents: Contents, vocab_size: int) -> Encode:
    """`tokenizer.json`, whose own padding, truncation and marks are left aside."""
    import tokenizers

    ((file, content),) = contents.items()
    stored = tokenizers.Tokenizer.from_str(decode(content, file))
    stored.no_padding()
    stored.no_truncation()
    largest = max(stored.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= LARGEST_ID:
        raise UserError(f"{file}: a word has the id {largest}, above {LARGEST_ID}")
    return lambda text: stored.encode(text, add_special_tokens=False).ids


def _two_files(contents: Contents, vocab_size: int) -> Encode:
    """CLIP's `vocab.json` and `merges.txt`."""
    (vocabulary, words), (merges, rules) = contents.items()
    lines = [line for line in decode(rules, merges).splitlines() if line and not line.startswith("#version")]
    return _byte_pairs(parse_json(words, dict[str, _Id], vocabulary), [_pair(line, merges) for line in lines])


_Id = Annotated[int, pydantic.Field(ge=0, lt=LARGEST_ID)]


def _pair(line: str, where: str) -> tuple[str, str]:
    parts = line.split()
    if len(parts) != 2:
        raise UserError(f"{where}: {shown(repr(line))} is no merge of two pieces")
    return parts[0], parts[1]


def _original_file(contents: Contents, vocab_size: int) -> Encode:
    """OpenAI's list of merges. The vocabulary follows from it: the bytes, the bytes that end a word, a word a merge, two marks."""
    import tokenizers

    ((file, content),) = contents.items()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    with gzip.open(io.BytesIO(content)) as opened:
        lines = decode(opened.read(_LARGEST_MERGES), file).splitlines()
    merges = [_pair(line, file) for line in lines[1 : 1 + vocab_size - 2 * len(alphabet) - 2]]
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges), _START, _END]
    return _byte_pairs({word: number for number, word in enumerate(words)}, merges)


def _byte_pairs(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Encode:
    """CLIP's byte-level BPE, with the cleaning of Hugging Face's. Words end in `</w>`; digits stand alone."""
    import tokenizers
    from tokenizers import normalizers, pre_tokenizers

    pieces = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    model = tokenizers.models.BPE(vocabulary, merges, end_of_word_suffix="</w>", fuse_unk=False, unk_token=_END)
    stored = tokenizers.Tokenizer(model)
    stored.add_special_tokens([_START, _END])
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    stored.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    split = pre_tokenizers.Split(tokenizers.Regex(pieces), behavior="removed", invert=True)
    stored.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return lambda text: stored.encode(text, add_special_tokens=False).ids


def _sentencepiece(contents: Contents, vocab_size: int) -> Encode:
    ((file, content),) = contents.items()
    try:
        import sentencepiece
    except ImportError:
        raise UserError(
            f"{file} needs the sentencepiece package ({installing('text')}), or the same tokenizer as {TOKENIZER_FILE}"
        ) from None
    return sentencepiece.SentencePieceProcessor(model_proto=content).encode


_READERS: Mapping[str, tuple[Callable[[Contents, int], Encode], str]] = {
    TOKENIZER_FILE: (_fast, "is not a tokenizer file"),
    VOCABULARY_FILE: (_two_files, "are not the files of one BPE tokenizer"),
    ORIGINAL_FILE: (_original_file, "is not CLIP's list of merges"),
}

if __name__ == "__main__":
    _trial()

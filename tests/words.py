"""A small tokenizer, as files."""

from __future__ import annotations

import json

import tokenizers


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE."""
    return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def write_clip_files(folder):
    """A small CLIP tokenizer in its two old files: all bytes, all bytes at a word's end, a few merges."""
    merges = [("c", "a"), ("ca", "t</w>"), ("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>"), ("'", "s</w>")]
    words = [*byte_alphabet(), *(f"{piece}</w>" for piece in byte_alphabet()), *("".join(pair) for pair in merges)]
    vocabulary = {word: number for number, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": 598, "<|endoftext|>": 599}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    return vocabulary

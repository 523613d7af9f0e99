"""Tokenizers: golden ids by hand and against transformers, cleaning, padding, and the traps of each family."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import tokenizers

from regcache_jax.encoders.spec import Tokenization
from regcache_jax.encoders.tokenizers import load_tokenizer
from regcache_jax.errors import UserError

CLIP = Tokenization("clip", 12, 600, "clip", pad_id=0, bos_id=598, eos_id=599)
SIGLIP = Tokenization("sentencepiece", 8, 40, "canonicalize", pad_id=1, eos_id=1)
SIGLIP2 = Tokenization("sentencepiece", 8, 40, "lower", pad_id=0, eos_id=1)
HASHED = Tokenization("hashed", 48, 2048, "none", pad_id=0)


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


def write_unigram(folder):
    """A small SentencePiece-like tokenizer as tokenizer.json: pieces of words, no normaliser of its own."""
    pieces = ["<pad>", "</s>", "<unk>", "▁a", "▁photo", "▁of", "▁cat", "▁", "a", "c", "t", "A", "C", "_", "."]
    stored = tokenizers.Tokenizer(
        tokenizers.models.Unigram([(piece, -float(index)) for index, piece in enumerate(pieces)], unk_id=2)
    )
    stored.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    stored.enable_padding(length=5)  # files carry settings of their own, which must not matter
    stored.enable_truncation(3)
    stored.save(str(folder / "tokenizer.json"))
    return {piece: index for index, piece in enumerate(pieces)}


def test_clip_text_stands_between_its_marks_and_is_padded_to_the_context(tmp_path):
    vocabulary = write_clip_files(tmp_path)
    (ids,) = load_tokenizer(CLIP, tmp_path)(["  A  photo&amp;Cat "])
    words = [vocabulary[word] for word in ("a</w>", "photo</w>", "&</w>", "cat</w>")]
    assert ids.tolist() == [598, *words, 599, 0, 0, 0, 0, 0, 0]
    assert ids.dtype == np.int32


def test_long_clip_text_keeps_its_end_mark(tmp_path):
    write_clip_files(tmp_path)
    (ids,) = load_tokenizer(CLIP, tmp_path)(["cat " * 50])
    assert ids[0] == 598 and ids[-1] == 599 and len(set(ids[1:-1].tolist())) == 1


def test_marks_written_in_a_text_do_not_end_it(tmp_path):
    write_clip_files(tmp_path)
    (ids,) = load_tokenizer(CLIP, tmp_path)(["cat <|endoftext|> cat"])
    assert ids.tolist().count(599) == 1 and ids.tolist().index(599) == 3


@pytest.mark.slow
@pytest.mark.parametrize("text", ["a photo of a cat", "It's 2026, isn't it?", "Ünïcode — 猫 🐱", "don't  STOP\tnow"])
def test_clips_two_old_files_give_transformers_ids(tmp_path, text):
    import transformers

    write_clip_files(tmp_path)
    spec = Tokenization("clip", 64, 600, "clip", pad_id=0, bos_id=598, eos_id=599)
    (ours,) = load_tokenizer(spec, tmp_path)([text])
    theirs = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))(text)["input_ids"]
    assert ours[: len(theirs)].tolist() == theirs and not ours[len(theirs) :].any()


def test_siglip_pads_with_its_end_mark_and_drops_case_and_punctuation(tmp_path):
    pieces = write_unigram(tmp_path)
    (ids,) = load_tokenizer(SIGLIP, tmp_path)(["A_photo, of a CAT."])
    words = [pieces[piece] for piece in ("▁a", "▁photo", "▁of", "▁a", "▁cat")]
    assert ids.tolist() == [*words, 1, 1, 1]


def test_siglip2_pads_with_zero_behind_one_end_mark_and_keeps_punctuation(tmp_path):
    pieces = write_unigram(tmp_path)
    (ids,) = load_tokenizer(SIGLIP2, tmp_path)(["A CAT."])
    assert ids.tolist() == [pieces["▁a"], pieces["▁cat"], pieces["."], 1, 0, 0, 0, 0]


@pytest.mark.parametrize("spec", [SIGLIP, SIGLIP2])
def test_cut_text_still_ends_in_the_end_mark(tmp_path, spec):
    write_unigram(tmp_path)
    (ids,) = load_tokenizer(spec, tmp_path)(["cat " * 20])
    assert ids[-1] == 1 and (ids[:-1] > 2).all()


def test_hashed_words_are_their_crc32_and_that_of_their_trigrams():
    (ids,) = load_tokenizer(HASHED, ".")(["Cat!"])
    expected = [1 + zlib.crc32(piece) % 2047 for piece in (b"<cat>", b"<ca", b"cat", b"at>")]
    assert ids.tolist() == expected + [0] * 44


def test_missing_and_damaged_files_get_one_message(tmp_path):
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor vocab\.json with merges\.txt"):
        load_tokenizer(CLIP, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer file"):
        load_tokenizer(SIGLIP, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("[1]")
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(UserError, match="not the files of one BPE tokenizer"):
        load_tokenizer(CLIP, tmp_path)


def test_a_tokenizer_of_another_encoder_is_refused(tmp_path):
    write_unigram(tmp_path)
    small = Tokenization("sentencepiece", 8, 5, "lower", pad_id=0, eos_id=1)
    with pytest.raises(UserError, match="files do not match"):
        load_tokenizer(small, tmp_path)(["a photo of a cat"])

# ruff: noqa: RUF001 - letters that look alike are what is tested
"""Tokenizers: golden ids by hand and against transformers, cleaning, padding, and the traps of each family."""

from __future__ import annotations

import dataclasses
import gzip
import json
import zlib

import numpy as np
import pytest
import tokenizers
from words import write_clip_files

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Tokenization
from regcache_jax.encoders import words
from regcache_jax.encoders.tokenizers import CLEANING, check_ids, find_files, load_tokenizer

CLIP = Tokenization("clip", 12, 600, "clip", pad_id=0, bos_id=598, eos_id=599)
SIGLIP = Tokenization("sentencepiece", 8, 40, "canonicalize", pad_id=1, eos_id=1)
SIGLIP2 = Tokenization("sentencepiece", 8, 40, "lower", pad_id=0, eos_id=1)
HASHED = Tokenization("hashed", 48, 2048, "none", pad_id=0)


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


HARD = [
    "", " ", "a photo of a cat", "A PHOTO OF A CAT!", "It's 2026, isn't it?", "Ünïcode — 猫 🐱", "🏳️‍🌈👩‍🚀 ok", "cafe\u0301 É",
    "ﬁne ＡＢＣ", "ΑΣ ΟΔΟΣ İstanbul ẞ", "snake_case __init__", "a\tb\nc  d ", "<b>&amp;</b> &lt;", "…“quotes” it’s", "cat " * 100,
    "don't  STOP\tnow", "zero\u200bwidth", "x" * 300, "!?!! wow!", "▁meta▁space", "100% $5.00 #1 @home", "\x07bell\ufeff", "½ ① ™ ﷺ",
]  # fmt: skip


def assert_ids_of_transformers(spec, folder, theirs):
    """Every id and every pad of the hard list."""
    wanted = theirs(HARD, padding="max_length", max_length=spec.context_length, truncation=True)["input_ids"]
    for text, ids, expected in zip(HARD, load_tokenizer(spec, folder)(HARD), wanted, strict=True):
        assert ids.tolist() == expected, text
        check_ids(ids[None], spec, padding_seen=spec.kind != "clip")


@pytest.mark.slow
def test_clips_files_old_and_new_give_the_ids_of_transformers(tmp_path):
    import transformers

    write_clip_files(tmp_path)
    spec = Tokenization("clip", 77, 600, "none", pad_id=599, bos_id=598, eos_id=599)
    theirs = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert_ids_of_transformers(spec, tmp_path, theirs)
    theirs.save_pretrained(tmp_path / "new")
    assert [file.name for file in find_files("clip", tmp_path / "new")] == ["tokenizer.json"]
    assert_ids_of_transformers(spec, tmp_path / "new", transformers.AutoTokenizer.from_pretrained(tmp_path / "new"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*SwigPy.*:DeprecationWarning", "ignore:.*swigvarlink.*:DeprecationWarning")
def test_siglips_files_old_and_new_give_the_ids_of_transformers(tmp_path):
    import sentencepiece
    import transformers

    sentences = [
        "a photo of a cat",
        "two dogs on grass",
        "it isnt 2026 is it",
        "cafe quotes zero width",
        "猫 🐱 é ü ï ß ς σ ο α",
    ]
    with (tmp_path / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences * 20), model_writer=file, vocab_size=90, hard_vocab_limit=False,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0, minloglevel=2,
        )  # fmt: skip
    spec = Tokenization("sentencepiece", 64, 90, "drop_punctuation", pad_id=1, eos_id=1)
    theirs = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    assert_ids_of_transformers(spec, tmp_path, theirs)
    transformers.T5Tokenizer.from_pretrained(tmp_path, extra_ids=0).save_pretrained(tmp_path / "new")
    assert [file.name for file in find_files("sentencepiece", tmp_path / "new")] == ["tokenizer.json"]
    assert_ids_of_transformers(spec, tmp_path / "new", theirs)


@pytest.mark.slow
def test_siglip2s_file_gives_the_ids_of_transformers(tmp_path):
    import transformers

    merges = [("c", "a"), ("ca", "t"), ("▁", "a"), ("▁", "p"), ("h", "o"), ("▁p", "ho"), ("t", "o"), ("▁pho", "to")]
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    words += [*"abcdefghijklmnopqrstuvwxyz0123456789éüïß猫σς.,!?'", *("".join(pair) for pair in merges)]
    transformers.Siglip2Tokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=merges,
        add_bos_token=False, add_eos_token=True, padding_side="right",
    ).save_pretrained(tmp_path)  # fmt: skip
    spec = Tokenization("sentencepiece", 64, len(words), "lower", pad_id=0, eos_id=1)
    assert_ids_of_transformers(spec, tmp_path, transformers.AutoTokenizer.from_pretrained(tmp_path))


def test_openais_list_of_merges_gives_the_same_ids_as_the_two_files(tmp_path):
    vocabulary = write_clip_files(tmp_path)
    merges = (tmp_path / "merges.txt").read_text().splitlines()
    (tmp_path / "original").mkdir()
    with gzip.open(tmp_path / "original/bpe_simple_vocab_16e6.txt.gz", "wt") as file:
        file.write("\n".join([*merges, "s u", "r plus"]))  # the list goes on behind what the model uses
    size = len(vocabulary)
    spec = dataclasses.replace(CLIP, vocab_size=size, bos_id=size - 2, eos_id=size - 1)
    ours, wanted = load_tokenizer(spec, tmp_path / "original")(HARD), load_tokenizer(CLIP, tmp_path)(HARD)
    np.testing.assert_array_equal(np.where(ours >= size - 2, ours + 600 - size, ours), wanted)


def test_text_is_cleaned_as_open_clip_does():
    """What ftfy 6.3 and html.unescape make of it, in open_clip's order."""
    for text, cleaned in (
        ("It’s “fine” — ok", "it's \"fine\" — ok"), ("ﬁne ﬂag", "fine flag"), ("ＡＢＣ　ｘ", "abc x"), ("cafe\u0301", "caf\u00e9"),
        ("&amp;lt;b&amp;gt;", "<b>"), ("a\u200bb", "a\u200bb"), ("\ufeffhi", "hi"), ("x\x07y", "xy"),
        ("line\r\nbreak\u2028z", "line break z"),
        ("ﾊﾝｶｸ", "ハンカク"), ("…", "…"),
    ):  # fmt: skip
        assert CLEANING["clip"](text) == cleaned


def test_an_underscore_is_a_space_in_big_vision_and_nothing_in_transformers():
    assert CLEANING["canonicalize"]("A_photo, of it's.") == "a photo of its"
    assert CLEANING["drop_punctuation"]("A_photo, of it's.") == "aphoto of its"


def test_big_vision_lowers_only_the_letters_of_ascii():
    assert CLEANING["lower_ascii"]("ÀBC ΑΣ") == "Àbc ΑΣ"
    assert CLEANING["lower"]("ÀBC ΑΣ") == "àbc ασ"


def test_an_exclamation_mark_is_a_word_although_its_id_pads(tmp_path):
    vocabulary = write_clip_files(tmp_path)
    (ids,) = load_tokenizer(CLIP, tmp_path)(["!?"])
    assert ids[:4].tolist() == [598, vocabulary["!"], vocabulary["?</w>"], 599] and vocabulary["!"] == 0


SOUND = {"clip": [598, 5, 6, 599, *[0] * 8], "siglip": [5, 6, 7, 1, 1, 1, 1, 1], "siglip2": [5, 6, 7, 1, 0, 0, 0, 0]}
SPECS = {"clip": CLIP, "siglip": SIGLIP, "siglip2": SIGLIP2}


@pytest.mark.parametrize("family", SPECS)
def test_ids_that_are_not_padded_as_trained_are_refused(family):
    spec, row = SPECS[family], SOUND[family]
    check_ids(np.array([row, row]), spec, padding_seen=family != "clip")
    wrong = {
        "unpadded": row[:4],
        "padded too far": [*row, row[-1]],
        "without an end": [5] * len(row),
        "out of range": [*row[:2], spec.vocab_size, *row[3:]],
    }
    if family != "clip":  # which never sees what stands behind its end
        wrong["padded with something else"] = [*row[:4], *[3] * 4]
        wrong["padded as the other one"] = SOUND["siglip2" if family == "siglip" else "siglip"]
    for what, ids in wrong.items():
        with pytest.raises(UserError, match=r"token ids should be as the model's own tokenizer makes them: \[n, "):
            check_ids(np.array([ids]), spec, padding_seen=family != "clip")
            pytest.fail(what)


def test_a_clip_that_looks_at_its_padding_wants_its_own(tmp_path):
    """MobileCLIP2's texts are not causal."""
    check_ids(np.array([SOUND["clip"]]), CLIP, padding_seen=True)
    with pytest.raises(UserError, match="one 599 behind the text, then 0 to the end; row 0 is not"):
        check_ids(np.array([[*SOUND["clip"][:4], *[599] * 8]]), CLIP, padding_seen=True)


@pytest.mark.slow
def test_xlm_v_s_words_are_those_of_transformers_and_its_sentencepiece_file_is_not_read(tmp_path):
    import transformers

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [
        (piece, -float(number))
        for number, piece in enumerate(["▁a", "▁photo", "▁of", "▁", "a", "c", "t", "É", "猫", "."])
    ]
    transformers.XLMRobertaTokenizer(vocab=pieces).save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    spec = Tokenization("xlm", 77, 14, "none", pad_id=1, bos_id=0, eos_id=2)
    assert_ids_of_transformers(spec, tmp_path, theirs)
    (tmp_path / "tokenizer.json").rename(tmp_path / "sentencepiece.bpe.model")
    with pytest.raises(UserError, match=r"has no tokenizer \(tokenizer.json\)"):  # its numbers are others
        load_tokenizer(spec, tmp_path)


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


@pytest.mark.slow
def test_missing_and_damaged_files_get_one_message(tmp_path):
    with pytest.raises(
        UserError, match=r"has no tokenizer \(tokenizer\.json or vocab\.json with merges\.txt or bpe_simple"
    ):
        load_tokenizer(CLIP, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer file"):
        load_tokenizer(SIGLIP, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("[1]")
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(UserError, match=r"vocab\.json: input should be an object"):
        load_tokenizer(CLIP, tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"merges\.txt are not the files of one BPE tokenizer"):
        load_tokenizer(CLIP, tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(UserError, match=r"merges\.txt: 'a b c' is no merge of two pieces"):
        load_tokenizer(CLIP, tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 4294967296}')
    with pytest.raises(UserError, match=r"vocab\.json: a: input should be less than 16777216"):
        load_tokenizer(CLIP, tmp_path)


def spoilt(folder, change):
    """A sound tokenizer.json, changed."""
    write_unigram(folder)
    tree = json.loads((folder / "tokenizer.json").read_text())
    change(tree)
    (folder / "tokenizer.json").write_text(json.dumps(tree))


def test_a_word_with_an_id_beyond_any_vocabulary_is_refused(tmp_path):
    bpe = {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}
    spoilt(tmp_path, lambda tree: tree.update(model=bpe, pre_tokenizer=None))
    with pytest.raises(UserError, match=r"tokenizer\.json: a word has the id 4294967295"):
        load_tokenizer(SIGLIP, tmp_path)


def test_a_file_that_ends_its_library_or_never_lets_it_end_costs_a_child_and_gives_one_line(tmp_path):
    spoilt(
        tmp_path,
        lambda tree: tree.update(model={"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]], "byte_fallback": True}),
    )
    with pytest.raises(
        UserError, match=r"tokenizer\.json .*(cannot be used|is not a tokenizer|cannot encode)"
    ) as refused:
        load_tokenizer(SIGLIP, tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.abort()", r"ends the library that reads it \(status -6"),
        ("while True: pass", "takes more than 1 seconds of a processor"),
        ("bytearray(1 << 40)", "ends the library that reads it .*MemoryError"),
        ("raise SystemExit(3)", "nothing was said"),
    ],
)
def test_whatever_a_child_does_is_told_in_one_line(tmp_path, monkeypatch, program, message):
    limits = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 2)); resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    (tmp_path / "hostile.py").write_text(f"{limits}\n{program}\n")
    monkeypatch.setattr(words, "SECONDS", 1)
    monkeypatch.setattr(words, "_PROGRAM", "hostile")
    monkeypatch.setattr(words.sys, "path", [str(tmp_path), *words.sys.path])
    with pytest.raises(UserError, match=message):
        words._try({"x/tokenizer.json": b"{}"}, 7)


def test_a_good_file_is_tried_once(tmp_path, monkeypatch):
    write_unigram(tmp_path)
    load_tokenizer(SIGLIP, tmp_path)
    monkeypatch.setattr(words, "_try", lambda *_: pytest.fail("tried again"))
    load_tokenizer(SIGLIP, tmp_path)


def test_a_panic_while_a_text_is_encoded_is_one_line(tmp_path, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(text):
        raise PanicException("index out of bounds")

    monkeypatch.setattr(words, "_try", lambda *_: None)
    monkeypatch.setattr(words, "read", lambda *_: panic)
    with pytest.raises(UserError, match="x cannot encode a text: index out of bounds"):
        words.read_tried({"x": b"1"}, 7)("cat")


def test_a_tokenizer_of_another_encoder_is_refused(tmp_path):
    write_unigram(tmp_path)
    small = Tokenization("sentencepiece", 8, 5, "lower", pad_id=0, eos_id=1)
    with pytest.raises(UserError, match="files do not match"):
        load_tokenizer(small, tmp_path)(["a photo of a cat"])

"""Damaged and hostile data, tables, reports, configs and tokenizers, each by its command: status 1, one line, no output left.

They mirror the samples that the project was given (`faults/`); those of checkpoints are in converters/test_checkpoint_faults.py."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
import small
from PIL import Image

from regcache_jax.core.spec import Tokenization
from regcache_jax.demo.bundled import bundled_model
from regcache_jax.models.folder import save

MODEL = bundled_model()


@pytest.fixture
def refused(regcache, tmp_path, monkeypatch):
    """Runs a command in the test's folder and asserts that it is refused in one line and leaves nothing. Returns the line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        status, _, err = regcache(*arguments)
        (line,) = [line for line in err.splitlines() if line.startswith("regcache:")]
        assert status == 1 and "Traceback" not in err and sorted(tmp_path.rglob("*")) == before, err
        return line

    return run


def png():
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(("label", "said"), [(b"cat", "got b'cat'"), (b"-7", "got b'-7'")])
def test_a_label_of_a_shard_that_is_no_class_is_named_with_its_sample(refused, tmp_path, label, said):
    (tmp_path / "w" / "test").mkdir(parents=True)
    (tmp_path / "w" / "classnames.txt").write_text("cat\ndog\n")
    with tarfile.open(tmp_path / "w" / "test" / "0.tar", "w") as archive:
        for name, content in (("00.png", png()), ("00.cls", label)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    line = refused("evaluate", MODEL, "--dataset", "wds/x", "--data-dir", "w")
    assert "w/test/0.tar: 00.cls must hold the number of a class" in line and said in line


def test_a_trial_table_that_is_no_text_is_refused_and_left_as_it_is(refused, tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b"\xff\xfe\n")
    line = refused(
        *("search", MODEL, "--dataset", "dummy", "--limit", "8", "--table", "t.jsonl", "--out", "p.safetensors")
    )
    assert "t.jsonl is no log of a search" in line and (tmp_path / "t.jsonl").read_bytes() == b"\xff\xfe\n"


def test_a_report_of_a_run_without_rows_is_refused(refused, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "results.json").write_text("[]")
    (tmp_path / "w" / "story.json").write_text("{}")
    assert "w/story.json: inspect: field required" in refused("report", "w", "--out", "r.html")


def test_a_config_whose_field_is_none_is_named(refused, tmp_path):
    (tmp_path / "c.py").write_text(
        "from regcache_jax.configs.demo import get_config as demo\n"
        "def get_config():\n"
        "    config = demo()\n"
        "    config.classnames = None\n"
        "    return config\n"
    )
    line = refused("run", "--config", "c.py", "--workdir", "w", "--config.classnames=x")
    assert "c.py: classnames: input should be a valid string, got None" in line


@pytest.mark.slow
def test_a_caption_is_read_by_what_needs_it_and_must_be_utf_8(refused, regcache, tmp_path):
    """`embed` writes captions beside features, so it refuses what it cannot read of them; naming classes takes none and reads none."""
    for name in ("cat", "dog"):
        (tmp_path / "pics" / name).mkdir(parents=True)
        (tmp_path / "pics" / name / "a.png").write_bytes(png())
    caption = tmp_path / "pics" / "cat" / "a.txt"
    caption.write_bytes("café".encode("latin-1"))
    line = refused("embed", MODEL, "--images", "pics", "--out", "f.npz")
    assert "pics/cat/a.txt is not UTF-8 text: byte 0xe9 at position 3" in line
    assert regcache("evaluate", MODEL, "--dataset", "folder", "--data-dir", "pics")[0] == 0
    caption.write_text("a café\none more\n", "utf-8")
    assert regcache("embed", MODEL, "--images", "pics", "--out", "f.npz")[0] == 0
    with np.load(tmp_path / "f.npz") as found:
        assert json.loads(str(found["captions"])) == [["a café", "one more"], []]


def tokenizer(**model):
    return json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model})


TOKENIZERS = {
    "huge id": (tokenizer(type="BPE", vocab={"a": 4294967295}, merges=[]), "a word has the id 4294967295"),
    "no unknown word": (tokenizer(type="Unigram", unk_id=5, vocab=[["a", 0.0]]), "is not a tokenizer file"),
    "sound": (tokenizer(type="WordLevel", vocab={"a": 1, "?": 2}, unk_token="?"), "is not as it was written"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", TOKENIZERS)
def test_a_hostile_tokenizer_ends_no_more_than_a_child_and_one_put_there_later_is_not_even_tried(
    refused, tmp_path, fault
):
    content, said = TOKENIZERS[fault]
    (tmp_path / "tokenizer.json").write_text(content)
    spec = small.SPECS["clip with text"]
    words = Tokenization("clip", spec.text.context_length, 50, "none", pad_id=49, bos_id=48, eos_id=49)
    encoder = small.encoder("clip with text").replace(spec=dataclasses.replace(spec, tokenization=words))
    save(tmp_path / "model", encoder, tokenizer_files=[tmp_path / "tokenizer.json"])
    if fault == "sound":
        (tmp_path / "model" / "tokenizer.json").write_text(content.replace("2", "3"))
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(png())
    (tmp_path / "t.txt").write_text("a photo\n")
    assert said in refused("embed", "model", "--images", "p", "--texts", "t.txt", "--out", "f.npz")

"""What is wrong with arguments is said in one clear line before anything long is done."""

from __future__ import annotations

import pytest

from regcache_jax.core.counted import counted
from regcache_jax.demo.bundled import bundled_model

MODEL = str(bundled_model())
DATA = ("--dataset", "emoji", "--limit", "4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", MODEL, "nowhere", *DATA), "there is no model folder nowhere"),
        (("quantize", MODEL, *DATA, "--out", "x", "--texts", "nowhere.txt"), "nowhere.txt cannot be read"),
        (("quantize", MODEL, *DATA, "--out", "x", "--auto", "--work", "w", "--recipes", "tea"), "unknown recipe 'tea'"),
        (
            ("convert", "nowhere", "--out", "x"),
            "there is no file or folder nowhere, and no encoder is called 'nowhere'",
        ),
        (("convert", "gs://bucket/vit", "--out", "x"), "is read from a disk or the hub; copy it here first"),
        (("convert", MODEL, "--out", "x"), "is a model folder already"),
        (("convert", MODEL, "--to", "nowhere", "--out", "x"), "no layout is called 'nowhere'; there are huggingface"),
        (("export", MODEL, "--out", "nowhere", "--again"), "there is no exported program nowhere"),
        (("embed", "--verify", "a", "--merge", "b"), "--verify and --merge exclude each other"),
        (("embed", MODEL, "--images", "nowhere", "--out", "set"), "there is no file nowhere"),
        (
            ("run", "--config", "demo", "--workdir", "w", "--dry-run", "--config.model=tea"),
            "no encoder is called 'tea'",
        ),
    ],
)
def test_one_line_says_what_is_wrong_and_nothing_is_measured_or_written(
    regcache, arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, _, err = regcache(*arguments)
    assert status in (1, 2) and message in err and "waiting for pictures" not in err
    assert not {path.name for path in tmp_path.iterdir()} & {"x", "set", "w"}


@pytest.mark.parametrize(
    ("number", "thing", "said"),
    [
        (1, "partition", "1 partition"),
        (0, "entry", "0 entries"),
        (12_000, "held-out picture", "12,000 held-out pictures"),
        (2, "pass", "2 passes"),
        (3, "search", "3 searches"),
        (1.0, "copy", "1 copy"),
        (2.5, "copy", "2.5 copies"),
    ],
)
def test_a_noun_agrees_with_its_number(number, thing, said):
    assert counted(number, thing) == said

"""The commands and the Python of README.md and docs/big_vision.md run as they stand there, and the files they link to exist."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from optimised import OPTIMISED
from PIL import Image
from randomized import CLIP_TEXT, clip, save_random
from words import write_clip_files

from regcache_jax.studies import composed

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


CHECK = """
assert features.shape == (8, 128) and np.isfinite(features).all()
exact = np.asarray(rc.encode_image(model.encoder, images[:8]))
# both have unit length; the table of the page has mean cosines to float between 0.98 and 1 at W8A8
assert (exact * features).sum(axis=1).mean() > 0.95
"""


@pytest.mark.slow
def test_the_ten_lines_of_python_run():
    """In a process of its own: a whole search runs longer than it compiles, so there it is optimised."""
    (lines,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", lines + CHECK],
        env={**os.environ, "XLA_FLAGS": OPTIMISED},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "registers take away" in done.stdout, done.stderr[-3000:]


@pytest.mark.slow
def test_the_three_commands_from_a_checkpoint_to_int8_run(regcache, tmp_path, monkeypatch):
    """A small CLIP lies where its name leads, and the folders of pictures beside it; nothing of the commands is changed. `--auto`
    composes fewer recipes than it knows, as a hundred take a minute."""
    for parts, kept in (("PREPARING", 1), ("SHARINGS", 1), ("ROUNDINGS", 1), ("RANGES", 2)):
        monkeypatch.setattr(composed, parts, getattr(composed, parts)[:kept])
    source = tmp_path / "openai" / "clip-vit-base-patch16"
    text = {**CLIP_TEXT, "vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599, "max_position_embeddings": 77}
    tower = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    save_random(clip(text, {**tower, "image_size": 32, "patch_size": 8}), source)
    write_clip_files(source)
    for number, name in enumerate(["pictures"] * 12 + ["labelled/cat", "labelled/photo"] * 4):
        noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(tmp_path / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    (commands,) = (block for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) if "convert" in block)
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        status, out, err = regcache(*arguments)
        assert program == "regcache" and status == 0, (line, out, err)
    assert "clip_b16_int8" in out and "top-1" in out.replace("acc1", "top-1")


def test_the_table_of_the_readme_is_what_the_benchmark_writes_and_stands_on_the_page_of_choices_too():
    demo = runpy.run_path(str(ROOT / "benchmarks" / "demo.py"))
    promised = demo["figures"](README)
    rows = [
        {"quantization": {"scheme": scheme, "row": kind, "examples": 816}, "metrics": {"acc1": top1 / 100}}
        for (scheme, kind), top1 in promised.items()
    ]
    for name in demo["PAGES"]:
        assert demo["table"](rows) == demo["TABLE"].findall((ROOT / name).read_text())[0], name
    assert demo["differences"](rows, README) == [] and len(promised) == 1 + 3 * 3
    rows[1]["metrics"]["acc1"] += 0.02
    assert demo["differences"](rows, README) == ["w8a8 plain: 71.4, promised 69.4"]


@pytest.mark.slow
def test_the_python_beside_big_vision_runs(capsys):
    """Its third piece is the example; the first two are lines for big_vision's own files."""
    pieces = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "big_vision.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(compile(pieces[2], "docs/big_vision.md", "exec"), names)
    assert names["text_features"] is None and names["image_features"].shape == (2, 128)
    found = dict(names["evaluator"].run(names["train_state"]))
    assert set(found) == {"emoji_accuracy", "emoji_acc5", "emoji_mean_per_class_recall"}
    assert found["emoji_accuracy"] > 0.7  # 816 pictures give 87 % in float and with scales by token (README)
    assert "emoji_accuracy" in capsys.readouterr().out


def test_every_file_that_the_readme_and_the_docs_link_to_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_file_that_the_pages_name_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"\b(?:tests|benchmarks|regcache_jax|scripts)/[\w/]+\.(?:py|sh)\b", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name} names {name}"

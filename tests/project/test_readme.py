"""The Python of README.md and docs/big_vision.md runs as it stands there, and the files they link to exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_ten_lines_of_python_run(capsys):
    (lines,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(compile(lines, "README.md", "exec"), names)
    assert "registers take away" in capsys.readouterr().out
    features = np.asarray(names["features"])
    assert features.shape == (8, 128) and np.isfinite(features).all()
    exact = np.asarray(names["rc"].encode_image(names["model"].encoder, names["images"][:8]))
    # both have unit length; the README's table has mean cosines to float between 0.98 and 1 at W8A8
    assert (exact * features).sum(axis=1).mean() > 0.95


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

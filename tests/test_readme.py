"""The README's Python runs as it stands there, and its files exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
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


def test_every_file_that_the_readme_and_the_docs_link_to_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"

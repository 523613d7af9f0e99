"""The documentation site: built strictly, read without a network, every public name with an example, every example run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import regcache_jax as rc

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def python_of(page: str) -> str:
    """The Python of a page, from top to bottom."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL))


def test_every_public_name_stands_on_the_page_of_python_and_in_one_of_its_examples():
    text, code = (DOCS / "api.md").read_text(), python_of("api.md")
    described = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)}
    assert described == set(rc.__all__)
    assert not [name for name in rc.__all__ if not re.search(rf"\brc\.{name}\b", code)]


@pytest.mark.slow
def test_the_python_of_the_page_of_python_runs_from_top_to_bottom():
    exec(compile(python_of("api.md"), "api.md", "exec"), {"__name__": "__main__"})


def test_no_page_links_to_a_line_of_a_file():
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        assert not re.findall(r"\]\([^)]*(?:#L\d+|\.py:\d+)[^)]*\)", page.read_text()), page.name


class Fetched(HTMLParser):
    """What a page asks for by itself when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        kinds = (given.get("rel") or "").split()
        asked = given.get("src") if tag in ("script", "img", "iframe") else None
        if tag == "link" and not {"canonical", "prev", "next"} & set(kinds):
            asked = given.get("href")
        if asked:
            self.addresses.append(asked)


@pytest.mark.slow
def test_the_site_is_built_strictly_and_nothing_in_it_is_fetched_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text())
        assert not [each for each in parser.addresses if re.match(r"(https?:)?//", each)], page.name
    options = (tmp_path / "site" / "cli.html").read_text()
    assert "{{" not in options and "--integer-attention" in options and "--batches" in options

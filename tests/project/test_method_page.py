"""docs/method.md and docs/map.md point at code by name; the file they link to must define that name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
LINK = re.compile(r"\[`(?:[\w/]+\.py: )?([\w.]+)`\]\((\.\./[\w/]+\.py)\)")


@pytest.mark.parametrize("page", ["method.md", "map.md"])
def test_every_name_that_a_page_points_at_is_defined_in_the_file_it_links_to(page):
    links = LINK.findall((DOCS / page).read_text())
    assert len(links) >= 15
    missing = [
        f"{file}: {name}"
        for name, file in links
        if not re.search(rf"^\s*(?:def|class) {name.rpartition('.')[2]}\b", (DOCS / file).read_text(), re.MULTILINE)
    ]
    assert not missing

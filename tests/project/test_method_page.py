"""docs/method.md points at code by name; the file it links to must define that name."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
LINK = re.compile(r"\[`(?:[\w/]+\.py: )?([\w.]+)`\]\((\.\./[\w/]+\.py)\)")


def test_every_name_that_the_method_points_at_is_defined_in_the_file_it_links_to():
    links = LINK.findall((DOCS / "method.md").read_text())
    assert len(links) >= 15
    missing = [
        f"{file}: {name}"
        for name, file in links
        if not re.search(rf"^\s*(?:def|class) {name.rpartition('.')[2]}\b", (DOCS / file).read_text(), re.MULTILINE)
    ]
    assert not missing

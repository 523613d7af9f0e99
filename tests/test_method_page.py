"""docs/method.md points at lines of code; they must be the lines where what it names begins."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
LINK = re.compile(r"\[`(?:[\w/]+\.py: )?([\w.]+)`\]\((\.\./[\w/]+\.py)#L(\d+)\)")


def test_every_line_that_the_method_names_is_where_it_begins():
    links = LINK.findall((DOCS / "method.md").read_text())
    assert len(links) >= 15
    wrong = []
    for name, file, number in links:
        lines = (DOCS / file).read_text().splitlines()
        begins = re.compile(rf"\s*(?:def|class) {name.rpartition('.')[2]}\b")
        found = [place for place, line in enumerate(lines, 1) if begins.match(line)]
        if int(number) not in found:
            wrong.append(f"{file}#L{number}: {name} begins at {found}")
    assert not wrong, "\n".join(wrong)

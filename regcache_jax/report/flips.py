"""What changed, picture by picture: the answers that are no longer the float encoder's, and the classes that gained or lost."""

from __future__ import annotations

import html
from typing import Any

from regcache_jax.report.tables import ROW_LABELS, table

Json = dict[str, Any]


def flips_section(changes: Json) -> str:
    """For every scheme how many answers flipped, some of those pictures, and the classes that changed."""
    parts = []
    for scheme, found in changes["schemes"].items():
        names = ["float", *(ROW_LABELS[kind] for kind in found["rows"][1:])]
        parts.append(f"<h3>{html.escape(scheme)}</h3>")
        if found["flips"] is None:
            continue
        counts = " and ".join(
            f"{count} with {html.escape(name)}" for name, count in zip(names[1:], found["flips"]["counts"], strict=True)
        )
        parts.append(f"<p>Answers that are not the float encoder's: {counts}.</p>")
        parts.append(
            _folded(f"pictures whose answer flipped at {scheme}", flips_table(found["flips"]["shown"], names, scheme))
        )
        parts.append(_folded(f"classes that changed at {scheme}", classes_table(found["classes"], names, scheme)))
    return "".join(parts)


def flips_table(shown: list[Json], names: list[str], scheme: str) -> str:
    """Some pictures with every row's answer; the right ones stand out."""
    body = []
    for each in shown:
        picture = f'<img class="small" alt="" src="data:image/png;base64,{each["picture"]}">'
        answers = [
            f"<strong>{html.escape(answer)}</strong>" if answer == each["class"] else html.escape(answer)
            for answer in each["answers"]
        ]
        body.append([html.escape(each["name"]), picture, html.escape(each["class"]), *answers])
    return table(("picture", "", "class", *names), body, name=f"answers at {scheme}", sortable=True, words=True)


def classes_table(classes: list[list[Any]], names: list[str], scheme: str) -> str:
    """How many pictures of a class each row gets right, and the last row's difference to float."""
    body = [
        [html.escape(name), str(count), *map(str, right), f"{right[-1] - right[0]:+d}"]
        for name, count, *right in classes
    ]
    head = ("class", "pictures", *(f"right, {name}" for name in names), f"{names[-1]} less float")
    return table(head, body, name=f"classes at {scheme}", sortable=True)


def _folded(summary: str, inside: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{inside}</details>"

"""Rivals beside registers: what gets as much right without them, scheme by scheme."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from regcache_jax.report.numbers import amount, points, share, within
from regcache_jax.report.tables import RIVALS, ROW_LABELS, table

Json = dict[str, Any]

HEAD = ("row", "top-1", "against registers", "cosine", "work")


def rivals_section(rows: Sequence[Json], story: Json) -> str:
    """A table a scheme: plain rounding, the full plan, and the rows that do without registers, each against the full plan."""
    changes, parts = story["changes"], []
    for scheme, found in changes["schemes"].items():
        if not found["rivals"]:
            continue
        shown = [
            (number, row)
            for number, row in enumerate(rows)
            if row["quantization"]["scheme"] == scheme and row["quantization"]["row"] in ("plain", "registers", *RIVALS)
        ]
        body = [
            [
                html.escape(ROW_LABELS[kind]),
                f"{share(row)} {within(changes, number)}",
                points(found["rivals"][kind]) if kind in found["rivals"] else "&ndash;",
                f"{row['metrics']['cosine']:.4f}",
                amount(row["quantization"]["cost"]),
            ]
            for number, row in shown
            for kind in [row["quantization"]["row"]]
        ]
        marks = ["full" if row["quantization"]["registers"] else "" for _, row in shown]
        parts.append(f"<h3>{html.escape(scheme)}</h3>" + table(HEAD, body, marks, name=f"rivals at {scheme}"))
    if not parts:
        return ""
    return (
        "<h2>Rivals beside registers</h2><p>Ways that need no registers, on the same pictures. Against registers: points of top-1, and in "
        "brackets the bootstrap&rsquo;s interval over pictures; where it holds zero, the two cannot be told apart here. Cosine: "
        "of the features to the float encoder&rsquo;s. Work: int8 multiply-adds an image, where one in float counts twice (a model, not a "
        "measurement).</p>" + "".join(parts)
    )

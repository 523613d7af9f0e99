"""Tables and sentences of the report, as HTML texts: results, footnotes, what was chosen, what was tried."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from regcache_jax.core.counted import counted
from regcache_jax.report.numbers import percent

Json = dict[str, Any]

ROW_LABELS = {
    "plain": "plain",
    "registers": "registers (full plan)",
    "prefix-only": "prefix only",
    "delete-only": "delete only",
    "group": "scales by token group",
    "group+registers": "scales by token group, registers",
    "percentile": "clipped at a percentile",
    "percentile+registers": "clipped at a percentile, registers",
    "smoothquant": "SmoothQuant",
    "strong": "SmoothQuant, ERQ and zero points",
    "tensor": "dynamic scales, per tensor",
    "token": "dynamic scales, per token",
}

RIVALS = ("group", "percentile", "smoothquant", "strong", "tensor", "token")
"""The rows that do without registers, beside plain rounding."""

MEASURES = {
    "acc1": "top-1",
    "acc5": "top-5",
    "cosine": "cosine",
    "relative_error": "rel. error",
    "agreement": "agrees",
}

TRIAL_KINDS = ("nothing", "prefix only", "delete only", "prefix and delete")


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    marks: Sequence[str] = (),
    *,
    name: str,
    sortable: bool = False,
    words: bool = False,
) -> str:
    """An HTML table that scrolls sideways where it does not fit; `marks` are the rows' classes, `name` is read out. Cells are HTML. Of a
    `sortable` one the head holds buttons; `words`: most cells are words and stand on the left."""
    top = "".join(
        f'<th scope="col">{f"<button>{cell}</button>" if sortable and cell else cell or "<span class=unseen>what</span>"}</th>'
        for cell in head
    )
    body = "".join(
        f'<tr class="{marks[number] if marks else ""}">{"".join(f"<td>{cell}</td>" for cell in row)}</tr>'
        for number, row in enumerate(rows)
    )
    kind = f' class="{"sortable " * sortable}{"words" * words}"' if sortable or words else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{html.escape(name)}"><table{kind}>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def results_table(rows: Sequence[Json]) -> str:
    """Every result row; the full plan stands out, a line parts the schemes, and notes stand below."""
    shown = [name for name in MEASURES if any(name in row["metrics"] for row in rows)]
    body, marks, notes, before = [], [], list[str](), None
    for row in rows:
        quantization = row["quantization"]
        label = html.escape(ROW_LABELS.get(quantization["row"], quantization["row"]))
        if quantization["note"]:
            if quantization["note"] not in notes:
                notes.append(quantization["note"])
            label += f" <sup>{notes.index(quantization['note']) + 1}</sup>"
        scheme = quantization["scheme"]
        figures = [_figure(row["metrics"].get(name), name) for name in shown]
        body.append([html.escape(scheme), label, *figures, str(quantization["examples"])])
        marks.append(f"{'full ' * quantization['registers']}{'first' * (scheme != before)}")
        before = scheme
    below = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    head = ["scheme", "row", *(MEASURES[name] for name in shown), "pictures"]
    return table(head, body, marks, name="results") + (f'<ol class="soft">{below}</ol>' if notes else "")


def _figure(value: float | None, name: str) -> str:
    if value is None:
        return "&ndash;"
    return f"{value:.4f}" if name in ("cosine", "relative_error") else percent(value)


def chosen_table(searched: dict[str, Json]) -> str:
    """What the search has chosen for every scheme, in words."""
    body = []
    for scheme, found in searched.items():
        numbers = found["numbers"]
        seen = f"blocks {numbers['start']} to {numbers['stop'] - 1}, {counted(numbers['copies'], 'copy')}"
        registers = f"{numbers['num_registers']} in {seen}" if numbers["stop"] > numbers["start"] else "none"
        deletes = (
            f"{numbers['delete_count']} before block {numbers['delete_block']}" if numbers["delete_count"] else "none"
        )
        errors = [f"{found['baseline_error']:.3g}", f"{found['error']:.3g} &plusmn; {found['claim']['spread']:.1g}"]
        body.append([html.escape(scheme), registers, deletes, *errors, f"{found['seconds']:.0f} s"])
    return table(
        ("scheme", "registers", "deleted tokens", "error without", "with", "search"), body, name="what was chosen"
    )


def trials_table(searched: dict[str, Json]) -> str:
    """The best of each kind of plan that was tried, by how many of the reference pictures have judged it."""
    body = []
    for scheme, found in searched.items():
        for kind in TRIAL_KINDS:
            rows = [row for row in found["trials"] if trial_kind(row["numbers"]) == kind]
            if rows:
                best = min(rows, key=lambda row: (-row["images"], row["error"]))
                share = best["images"] / max(row["images"] for row in found["trials"])
                body.append([html.escape(scheme), kind, str(len(rows)), f"{best['error']:.3g}", f"{share:.0%}"])
    marks = ["first" * (number == 0 or body[number - 1][0] != row[0]) for number, row in enumerate(body)]
    return table(
        ("scheme", "plan", "tried", "least error", "of the pictures"), body, marks, name="the best of each kind of plan"
    )


def trial_kind(numbers: Json) -> str:
    """Which of TRIAL_KINDS a point of the search is."""
    return TRIAL_KINDS[(numbers["stop"] > numbers["start"]) + 2 * (numbers["delete_count"] > 0)]


def sentences(texts: Iterable[str]) -> str:
    """A list; what stands in backticks is set as code."""
    items = (re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text)) for text in texts)
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"

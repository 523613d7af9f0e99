"""The page of a comparison: error over cost for every number of bits, and the table of all recipes."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from regcache_jax.report.document import document
from regcache_jax.report.numbers import amount
from regcache_jax.report.plots import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    LogAxis,
    closed,
    opened,
    sheet,
    written,
)
from regcache_jax.report.tables import table

ASIDE = 230
"""Room on the right for the names, in the units of the picture."""
LINE = 17
"""Height of a name."""


class Tried(NamedTuple):
    """A recipe that was tried. `front`: nothing is better in both error and cost; `tied`: cannot be told from the least error of its bits;
    `note`: why a figure is missing."""

    name: str
    registers: bool
    cost: float | None
    error: float | None
    jitter: float | None
    worst: float | None
    accuracy: float | None
    front: bool
    tied: bool
    note: str = ""


def compared_page(title: str, tried: Mapping[str, Sequence[Tried]], cost_unit: str) -> str:
    """The page as HTML; `tried` by bits."""
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        "<p>Error: against the float encoder, without labels; a bar is one standard error either way. A line joins what nothing "
        "beats in both error and cost. A ring cannot be told from the least error of its bits: there the cheapest is the one to take. "
        f'<span style="color:{COLOURS[0]}">&#9679;</span> without registers, <span style="color:{COLOURS[1]}">&#9679;</span> with.</p>',
    ]
    for bits, entries in tried.items():
        parts.append(f"<h2>{html.escape(bits)}</h2>")
        if any(entry.error is not None and entry.cost is not None for entry in entries):
            name = f"error over cost at {bits}"
            drawing = error_over_cost(entries, cost_unit, name)
            parts.append(
                f'<div class="wide" role="region" tabindex="0" aria-label="{html.escape(name)}">{drawing}</div>'
            )
        parts.append(table(HEAD, map(_row, entries), name=f"recipes at {bits}", sortable=True))
    return document(title, "".join(parts))


def compared_sheet(title: str, tried: Mapping[str, Sequence[Tried]], cost_unit: str) -> str:
    """Error over cost for every number of bits, as one picture."""
    drawn = {
        bits: [entry for entry in entries if entry.error is not None and entry.cost is not None]
        for bits, entries in tried.items()
    }
    return sheet(
        [
            (f"{bits}: error over cost", error_over_cost(entries, cost_unit, bits))
            for bits, entries in drawn.items()
            if entries
        ],
        title,
    )


HEAD = ("recipe", "registers", "error", "&plusmn;", "worst picture", "cost", "top-1", "remark")


def _row(entry: Tried) -> list[str]:
    figures = (entry.error, entry.jitter, entry.worst)
    shown = ["&ndash;" if figure is None else f"{figure:.3g}" for figure in figures]
    cost = "&ndash;" if entry.cost is None else amount(entry.cost)
    accuracy = "&ndash;" if entry.accuracy is None else f"{100 * entry.accuracy:.1f} %"
    remarks = [
        *(["front"] if entry.front else []),
        *(["tied with the best"] if entry.tied else []),
        html.escape(entry.note),
    ]
    names = [html.escape(entry.name), "yes" if entry.registers else "no"]
    return [*names, *shown, cost, accuracy, f'<span class="remark">{", ".join(filter(None, remarks))}</span>']


def error_over_cost(entries: Sequence[Tried], cost_unit: str, title: str) -> str:
    """Points on a linear axis of cost, which begins at zero, and a logarithmic one of error. The names of the front and of ties stand on
    the right, one a line, each joined to its point."""
    shown = [entry for entry in entries if entry.error and entry.cost is not None]
    y, most = LogAxis([entry.error or 1.0 for entry in shown]), max(entry.cost or 0.0 for entry in shown) or 1.0
    right = WIDTH - RIGHT

    def place(entry: Tried) -> tuple[float, float]:
        assert entry.cost is not None and entry.error is not None
        return LEFT + entry.cost / most * (right - LEFT), y(entry.error)

    named = sorted((entry for entry in shown if entry.front or entry.tied), key=lambda entry: place(entry)[1])
    height = max(HEIGHT, TOP + LINE * len(named) + BOTTOM)
    parts = [opened(WIDTH + ASIDE, height, title), y.grid()]
    step = 10 ** math.floor(math.log10(most))
    step = step if most / step >= 3 else step / 2 if most / step >= 1.5 else step / 4
    for tick in range(int(most / step) + 1):
        left = LEFT + tick * step / most * (right - LEFT)
        parts.append(written(left, HEIGHT - BOTTOM + 18, amount(tick * step) if tick % 2 == 0 else "", "middle"))
    parts.append(written((LEFT + right) / 2, HEIGHT - 6, f"cost: {cost_unit}", "middle"))
    front = sorted(place(entry) for entry in shown if entry.front)
    path = " ".join(f"{left:.1f},{top:.1f}" for left, top in front)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[3]}" stroke-width="1.5"/>')
    parts += [_point(entry, *place(entry), y) for entry in shown]
    for top, entry in zip(names_apart([place(entry)[1] for entry in named], height), named, strict=True):
        from_left, from_top = place(entry)
        parts.append(
            f'<path d="M{from_left + 6:.1f} {from_top:.1f}L{right + 4} {top:.1f}" fill="none" stroke="currentColor" '
            'stroke-opacity=".25"/>'
        )
        registers = " + registers" if entry.registers else ""
        parts.append(written(right + 8, top + 5, f"{entry.name}{registers}", "start"))
    return "".join([*parts, closed()])


def names_apart(tops: Sequence[float], height: float) -> list[float]:
    """Where names stand that would be at `tops`, from the top down, so that none covers another and all are in the picture."""
    found: list[float] = []
    for top in tops:
        found.append(max(top, found[-1] + LINE if found else TOP))
    last = height - BOTTOM
    for number in reversed(range(len(found))):
        found[number] = min(found[number], last)
        last = found[number] - LINE
    return found


def _point(entry: Tried, left: float, top: float, y: LogAxis) -> str:
    """A point with its bar; registers have the second colour, ties are rings."""
    assert entry.error is not None
    colour = COLOURS[int(entry.registers)]
    bar = ""
    if entry.jitter and entry.error > entry.jitter:
        ends = [y(entry.error + entry.jitter), y(entry.error - entry.jitter)]
        bar = f'<path d="M{left:.1f} {ends[0]:.1f}V{ends[1]:.1f}" stroke="{colour}" stroke-width="1.2"/>'
    inside = f'fill="none" stroke="{colour}" stroke-width="2.2"' if entry.tied else f'fill="{colour}"'
    words = f"{entry.name}{' + registers' if entry.registers else ''}: error {entry.error:.3g}, cost {entry.cost:.3g}"
    return f'{bar}<circle cx="{left:.1f}" cy="{top:.1f}" r="4.5" {inside}><title>{html.escape(words)}</title></circle>'

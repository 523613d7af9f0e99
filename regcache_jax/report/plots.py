"""Plots as SVG texts, made for light and dark pages: lines on a logarithmic axis, heat maps, bars of trials."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

COLOURS = ("var(--first, #c2410c)", "var(--second, #0f766e)", "var(--third, #6d28d9)", "var(--fourth, #64748b)")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 300, 56, 42, 16, 16


def lines(
    series: Mapping[str, Sequence[float]], x_label: str, y_label: str, dashed: Sequence[str] = (), title: str = ""
) -> str:
    """One line a series over blocks 0, 1, ..., on a logarithmic axis; zeros are left out."""
    values = [value for row in series.values() for value in row if value > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high = max(high, low + 1)
    count = max(len(row) for row in series.values())

    def x(index: int) -> float:
        return LEFT + index * (WIDTH - LEFT - RIGHT) / max(count - 1, 1)

    def y(value: float) -> float:
        return TOP + (high - math.log10(value)) * (HEIGHT - TOP - BOTTOM) / (high - low)

    parts = [_open(WIDTH, HEIGHT + 22 * math.ceil(len(series) / 2), title or y_label)]
    for power in range(low, high + 1):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(10.0**power):.1f}" y2="{y(10.0**power):.1f}" class="grid"/>'
        )
        parts.append(_text(LEFT - 8, y(10.0**power) + 4, f"{10.0**power:g}", "end"))
    for index in range(count):
        parts.append(_text(x(index), HEIGHT - BOTTOM + 18, str(index), "middle"))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 6, x_label, "middle"))
    for number, (name, row) in enumerate(series.items()):
        colour = COLOURS[number // 2 % len(COLOURS)] if dashed else COLOURS[number % len(COLOURS)]
        style = ' stroke-dasharray="5 4"' if name in dashed else ""
        points = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(row) if value > 0)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.2"{style}/>')
        left, top = LEFT + (number % 2) * 290, HEIGHT + 12 + 22 * (number // 2)
        parts.append(
            f'<line x1="{left}" x2="{left + 26}" y1="{top}" y2="{top}" stroke="{colour}" stroke-width="2.2"{style}/>'
        )
        parts.append(_text(left + 32, top + 4, name, "start"))
    return "".join([*parts, "</svg>"])


def norms_by_block(profiles: Mapping[str, Any]) -> str:
    """Largest and median l-inf norm of patches at every block's input, one colour a profile (an object or its JSON)."""
    series: dict[str, list[float]] = {}
    dashed = []
    for name, profile in profiles.items():
        tree = profile if isinstance(profile, dict) else profile.to_json()
        patch = tree["groups"].index("patch")
        series[f"{name}: largest"] = [row[patch] for row in tree["maximum"][0]]
        series[f"{name}: median"] = [row[patch] for row in tree["median"][0]]
        dashed.append(f"{name}: median")
    return lines(series, "block", "l-inf norm of patch tokens at the block's input", dashed)


def heat_map(rows: Sequence[Sequence[float]], largest: float, size: int = 128, title: str = "") -> str:
    """A grid of values, dark for small and bright for `largest`, on a logarithmic scale."""
    side = size / len(rows)
    scale = math.log1p(largest)
    parts = [_open(size, size, title)]
    for row_number, row in enumerate(rows):
        for column, value in enumerate(row):
            share = min(1.0, math.log1p(max(value, 0.0)) / scale)
            parts.append(
                f'<rect x="{column * side:.2f}" y="{row_number * side:.2f}" width="{side + 0.3:.2f}" height="{side + 0.3:.2f}" '
                f'fill="hsl({250 - 210 * share:.0f} 75% {12 + 58 * share:.0f}%)"><title>{value:.1f}</title></rect>'
            )
    return "".join([*parts, "</svg>"])


def _open(width: int, height: int, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" font-family="system-ui, sans-serif" '
        f'font-size="12" style="max-width:{width}px;width:100%"><title>{html.escape(title)}</title>'
        "<style>.grid{stroke:currentColor;stroke-opacity:.15}text{fill:currentColor}</style>"
    )


def _text(x: int | float, y: int | float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'

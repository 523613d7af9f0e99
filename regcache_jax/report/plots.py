"""Plots as SVG texts, made for light and dark pages: lines and points on a logarithmic axis, bars, heat maps."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

COLOURS = ("var(--first, #c2410c)", "var(--second, #0f766e)", "var(--third, #6d28d9)", "var(--fourth, #64748b)")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 520, 280, 64, 42, 16, 16


class LogAxis:
    """The vertical axis of a plot: whole powers of ten around the values."""

    def __init__(self, values: Sequence[float]) -> None:
        positive = [value for value in values if value > 0] or [1.0]
        self.low = math.floor(math.log10(min(positive)))
        self.high = max(math.ceil(math.log10(max(positive)) - 1e-9), self.low + 1)

    def __call__(self, value: float) -> float:
        """Where a value lies, in the units of the picture."""
        return TOP + (self.high - math.log10(value)) * (HEIGHT - TOP - BOTTOM) / (self.high - self.low)

    def grid(self) -> str:
        """A line and a number for every power of ten."""
        powers = [10.0**power for power in range(self.low, self.high + 1)]
        return "".join(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self(power):.1f}" y2="{self(power):.1f}" class="grid"/>'
            + written(LEFT - 8, self(power) + 4, f"{power:g}", "end")
            for power in powers
        )


def lines(
    series: Mapping[str, Sequence[float]], x_label: str, title: str, dashed: Sequence[str] = (), marks: bool = True
) -> str:
    """One line a series over blocks 0, 1, ..., on a logarithmic axis; zeros are left out."""
    y = LogAxis([value for row in series.values() for value in row])
    count = max(len(row) for row in series.values())
    step = math.ceil(count / 16)

    def x(index: int) -> float:
        return LEFT + index * (WIDTH - LEFT - RIGHT) / max(count - 1, 1)

    parts = [opened(WIDTH, HEIGHT + 22 * math.ceil(len(series) / 2), title), y.grid()]
    parts += [written(x(index), HEIGHT - BOTTOM + 18, str(index), "middle") for index in range(0, count, step)]
    parts.append(written((LEFT + WIDTH) / 2, HEIGHT - 6, x_label, "middle"))
    for number, (name, row) in enumerate(series.items()):
        colour = COLOURS[number // 2 % len(COLOURS)] if dashed else COLOURS[number % len(COLOURS)]
        style = ' stroke-dasharray="5 4"' if name in dashed else ""
        points = {index: (x(index), y(value)) for index, value in enumerate(row) if value > 0}
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in points.values())
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"{style}/>')
        if marks and not style:
            parts += [
                f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3" fill="{colour}"><title>{html.escape(name)}, {x_label} {index}: '
                f"{row[index]:.3g}</title></circle>"
                for index, (left, top) in points.items()
            ]
        left, top = beneath(number)
        parts.append(
            f'<line x1="{left}" x2="{left + 26}" y1="{top}" y2="{top}" stroke="{colour}" stroke-width="2.2"{style}/>'
        )
        parts.append(written(left + 32, top + 4, name, "start"))
    return "".join([*parts, "</svg>"])


def norms_by_block(profiles: Mapping[str, Any]) -> str:
    """Largest and median l-inf norm of patches at every block's input, one colour a profile (an object or its JSON), and the line of the
    first beyond which a patch is a sink."""
    series: dict[str, list[float]] = {}
    dashed = []
    for name, profile in profiles.items():
        tree = profile if isinstance(profile, dict) else profile.to_json()
        patch = tree["groups"].index("patch")
        series[f"{name}: largest"] = [row[patch] for row in tree["maximum"][0]]
        series[f"{name}: median"] = [row[patch] for row in tree["median"][0]]
        dashed.append(f"{name}: median")
    first = next(iter(profiles))
    series["a sink: 10 times the median"] = [10 * value for value in series[f"{first}: median"]]
    dashed.append("a sink: 10 times the median")
    return lines(series, "block", "l-inf norms of patch tokens at the block's input", dashed)


def norms_by_group(profile: Any, place: int, title: str) -> str:
    """Largest and median l-inf norm by block at one place, one colour a group of tokens that is there."""
    names = {"patch": "patches", "class": "class token", "register": "trained registers"}
    series: dict[str, list[float]] = {}
    for group, name in names.items():
        column = profile.groups.index(group)
        for kind, table in (("largest", profile.maximum), ("median", profile.median)):
            if table[place, :, column].any():
                series[f"{name}: {kind}"] = table[place, :, column].tolist()
    return lines(series, "block", title, [name for name in series if name.endswith("median")])


def inspection_sheet(profile: Any, errors: Any, grid: int, what: str) -> str:
    """What `regcache inspect` found, as one picture: norms at the blocks' inputs and inside, where sinks sit, sensitivity."""
    block = profile.sink_block
    share = profile.sink_share[block][-grid * grid :].reshape(grid, grid)
    where = (
        f"share of the {profile.num_images} pictures with a sink here, at the input of block {block} "
        f"(brightest: {share.max():.0%})"
    )
    pictures = [
        (title, norms_by_group(profile, place, title))
        for place, name in enumerate(profile.places)
        for title in [f"l-inf norms at {'the block' if name == 'hidden' else name}'s input"]
    ]
    pictures.append((where, heat_map(share.tolist(), float(share.max()), 220, where)))
    title = f"{what} with one site of one block quantised"
    pictures.append((title, cells(errors.tolist(), profile.places[1:], "block", title)))
    return sheet(pictures, "what regcache inspect found")


def sheet(pictures: Sequence[tuple[str, str]], title: str) -> str:
    """Captions and pictures one under another, as one picture on white."""
    parts, top, widest = [], 0.0, 0.0
    for caption, picture in pictures:
        head, inside = picture.removesuffix("</svg>").split(">", 1)
        width, height = (float(number) for number in head.split('viewBox="0 0 ')[1].split('"')[0].split())
        parts.append(written(8, top + 20, caption, "start"))
        parts.append(f'<g transform="translate(8 {top + 30:g})">{inside}</g>')
        top, widest = top + height + 54, max(widest, width + 16, 9.0 * len(caption))
    return "".join([opened(widest, top, title), '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>"])


def scatter(groups: Mapping[str, Sequence[tuple[float, float]]], x_label: str, title: str) -> str:
    """Points (x, y) in one colour a group; y is logarithmic."""
    every = [point for points in groups.values() for point in points]
    y = LogAxis([top for _, top in every])
    last = max((left for left, _ in every), default=1.0)
    parts = [opened(WIDTH, HEIGHT + 22 * math.ceil(len(groups) / 2), title), y.grid()]
    for tick in sorted({round(last * part / 4) for part in range(5)}):
        parts.append(
            written(LEFT + tick / last * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM + 18, f"{tick:.0f}", "middle")
        )
    parts.append(written((LEFT + WIDTH) / 2, HEIGHT - 6, x_label, "middle"))
    for number, (name, points) in enumerate(groups.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts += [
            f'<circle cx="{LEFT + left / last * (WIDTH - LEFT - RIGHT):.1f}" cy="{y(top):.1f}" r="3.4" fill="{colour}" '
            f'fill-opacity=".75"><title>{html.escape(name)}: {top:.3g}</title></circle>'
            for left, top in points
            if top > 0
        ]
        left, top = beneath(number)
        parts.append(f'<circle cx="{left + 4}" cy="{top}" r="4" fill="{colour}"/>')
        parts.append(written(left + 14, top + 4, name, "start"))
    return "".join([*parts, "</svg>"])


def beneath(number: int) -> tuple[int, int]:
    """Where an entry of a legend stands under a plot, two a line."""
    return 8 + number % 2 * 256, HEIGHT + 12 + 22 * (number // 2)


def bars(rows: Sequence[tuple[str, float, str]], line: tuple[str, float], title: str) -> str:
    """Horizontal bars of shares 0..1, (label, share, colour), with one line across for comparison."""
    left = 20 + 7.5 * max(len(label) for label, _, _ in rows)
    width, right, height = 560, 70, 28
    across = width - left - right
    place, bottom = left + line[1] * across, height * len(rows)
    parts = [opened(width, bottom + 28, title)]
    parts.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="0" y2="{bottom + 6}" class="across"/>')
    for number, (label, share, colour) in enumerate(rows):
        top, beside = number * height, f"{100 * (share - line[1]):+.1f} points to {line[0]}"
        parts.append(written(left - 8, top + 19, label, "end"))
        parts.append(
            f'<rect x="{left:g}" y="{top + 4}" width="{max(share, 0) * across:.1f}" height="{height - 8}" fill="{colour}">'
            f"<title>{html.escape(f'{label}: {100 * share:.1f} %, {beside}')}</title></rect>"
        )
        parts.append(written(width - 8, top + 19, f"{100 * share:.1f} %", "end"))
    parts.append(written(place, bottom + 21, f"{line[0]} {100 * line[1]:.1f} %", "middle"))
    return "".join([*parts, "</svg>"])


def heat_map(rows: Sequence[Sequence[float]], largest: float, size: int = 128, title: str = "") -> str:
    """A grid of values, dark for small and bright for `largest`, on a logarithmic scale; its longer side is `size`."""
    side = size / max(len(rows), len(rows[0]))
    parts = [opened(side * len(rows[0]), side * len(rows), title)]
    for row_number, row in enumerate(rows):
        for column, value in enumerate(row):
            parts.append(
                f'<rect x="{column * side:.2f}" y="{row_number * side:.2f}" width="{side + 0.3:.2f}" height="{side + 0.3:.2f}" '
                f'fill="{colour_of(value, largest)}"><title>{value:.3g}</title></rect>'
            )
    return "".join([*parts, "</svg>"])


def colour_of(value: float, largest: float) -> str:
    """The colour of a value on the heat maps' logarithmic scale."""
    share = min(1.0, math.log1p(max(value, 0.0)) / math.log1p(largest)) if largest > 0 else 0.0
    return f"hsl({250 - 210 * share:.0f} 75% {12 + 58 * share:.0f}%)"


def heat_scale(largest: float) -> str:
    """The heat maps' colours with their values."""
    values = [0.0, *(largest ** (part / 4) for part in range(1, 5))]
    parts = [opened(5 * 62, 34, "colours of the maps")]
    for number, value in enumerate(values):
        parts.append(
            f'<rect x="{number * 62}" y="0" width="62" height="14" fill="{colour_of(value, largest)}"/>'
            + written(number * 62 + 31, 28, f"{value:.0f}", "middle")
        )
    return "".join([*parts, "</svg>"])


def cells(
    rows: Sequence[Sequence[float]], columns: Sequence[str], corner: str, title: str, largest: float | None = None
) -> str:
    """A grid of numbers, one row a name of `columns`, written and shaded by their share of the largest (of another grid, where two are to
    be compared); columns are numbered."""
    wide, tall, left, count = 56, 24, 50, len(rows)
    largest = (max(max(row) for row in rows) if largest is None else largest) or 1.0
    parts = [opened(left + wide * count, tall * (len(columns) + 1), title), written(left - 8, 16, corner, "end")]
    parts += [written(left + wide * (number + 0.5), 16, str(number), "middle") for number in range(count)]
    for line, name in enumerate(columns):
        top = tall * (line + 1)
        parts.append(written(left - 8, top + 16, name, "end"))
        for number, row in enumerate(rows):
            parts.append(
                f'<rect x="{left + wide * number}" y="{top}" width="{wide - 2}" height="{tall - 2}" fill="{COLOURS[0]}" '
                f'fill-opacity="{0.06 + 0.6 * min(max(row[line], 0.0) / largest, 1.0):.2f}">'
                f"<title>{html.escape(name)}, {corner} {number}: {row[line]:.3g}</title></rect>"
                + written(left + wide * (number + 0.5) - 1, top + 15, f"{row[line]:.0e}".replace("e-0", "e-"), "middle")
            )
    return "".join([*parts, "</svg>"])


def opened(width: float, height: float, title: str) -> str:
    """The beginning of a picture with what it is called."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'font-family="system-ui, sans-serif" font-size="14" style="--full:{width:g}px;max-width:{width:g}px;width:100%">'
        f"<title>{html.escape(title)}</title>"
        "<style>.grid{stroke:currentColor;stroke-opacity:.15}.across{stroke:currentColor;stroke-dasharray:3 3}"
        "text{fill:currentColor}</style>"
    )


def closed() -> str:
    """Its end."""
    return "</svg>"


def written(x: int | float, y: int | float, text: str, anchor: str) -> str:
    """A text at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'

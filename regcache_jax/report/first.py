"""The report's first screen: the verdict, gains and losses with their intervals, the search's claim, bytes, what to do next."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

from regcache_jax.report.tables import ROW_LABELS, sentences, table

Json = dict[str, Any]


def first_screen(rows: Sequence[Json], story: Json) -> str:
    """Verdict, a table with one line a scheme, and the next commands."""
    return (
        f'<div class="verdict">{sentences(verdict(rows, story))}</div>'
        + glance_table(rows, story)
        + '<p class="soft">In brackets: 95 of 100 samples of pictures would give a figure in there (top-1: Wilson; differences and cosine: '
        "bootstrap over pictures). Points: percentage points of top-1. Error: squared distance between float and quantised features of "
        "unit length.</p><h2>What to do next</h2>" + next_commands(story)
    )


def verdict(rows: Sequence[Json], story: Json) -> Iterator[str]:
    """The first scheme in sentences: how much is right, what registers gained, and whether something simpler does as well."""
    changes = story["changes"]
    scheme, found = next(iter(changes["schemes"].items()))
    index = {(row["quantization"]["scheme"], row["quantization"]["row"]): number for number, row in enumerate(rows)}
    kind = found["rows"][-1]
    number = index.get((scheme, kind), 0)
    seen = rows[0]["quantization"]["examples"]
    yield (
        f"{scheme}, {ROW_LABELS[kind]}: {_share(rows[number])} of {seen} pictures are right {_within(changes, number)}; "
        f"the float encoder has {_share(rows[0])} {_within(changes, 0)}."
    )
    if found["gain"] is not None:
        low, high = found["gain"]["interval"]
        if low <= 0 <= high:
            yield f"Whether registers gain anything over plain rounding cannot be told from these pictures: {_points(found['gain'])}."
        else:
            word = "gain" if low > 0 else "lose"
            yield f"Registers {word} {_points(found['gain'])} over plain rounding."
    rivals = [
        (row["metrics"]["acc1"], row)
        for row in rows
        if row["quantization"]["scheme"] == scheme and row["quantization"]["row"] in RIVALS
    ]
    if rivals and kind == "registers":
        best, row = max(rivals, key=lambda each: each[0])
        low, high = changes["intervals"][number]["acc1"]
        where = "as well, within the spread" if low <= best <= high else "better" if best > high else "worse"
        yield f"Without registers, {ROW_LABELS[row['quantization']['row']]} does {where}: {_share(row)}."


RIVALS = ("group", "percentile", "smoothquant", "strong", "tensor", "token")
"""The rows that do without registers, beside plain rounding."""


GLANCE = (
    "plain", "with registers", "gained by registers", "against float", "error claimed by the search", "error on these pictures",
    "parameters",
)  # fmt: skip


def glance_table(rows: Sequence[Json], story: Json) -> str:
    """A column a scheme: plain, with registers, the differences, the error that was claimed and that was found, bytes."""
    schemes = list(story["changes"]["schemes"])
    columns = [glance(rows, story, scheme) for scheme in schemes]
    body = [[name, *(column[line] for column in columns)] for line, name in enumerate(GLANCE)]
    return table(("", *map(html.escape, schemes)), body, name="at a glance", words=True)


def glance(rows: Sequence[Json], story: Json, scheme: str) -> list[str]:
    """What stands under one scheme, in the order of GLANCE."""
    changes = story["changes"]
    found = changes["schemes"][scheme]
    index = {(row["quantization"]["scheme"], row["quantization"]["row"]): number for number, row in enumerate(rows)}
    numbers = [index.get((scheme, kind)) for kind in ("plain", "registers")]
    cells = [
        "&ndash;" if number is None else f"{_share(rows[number])} {_within(changes, number)}" for number in numbers
    ]
    cells.append("&ndash;" if found["gain"] is None else _points(found["gain"]))
    cells.append(_points(found["loss"]))
    searched, number = story["search"].get(scheme), numbers[1]
    if searched is None or number is None:
        cells += ["&ndash;", "&ndash;"]
    else:
        low, high = changes["intervals"][number]["cosine"]
        measured = 2 * (1 - rows[number]["metrics"]["cosine"])
        cells.append(f"{searched['error']:.3g} &plusmn; {searched['claim']['spread']:.1g}")
        cells.append(f"{measured:.3g} ({2 * (1 - high):.3g} to {2 * (1 - low):.3g})")
    return [*cells, f"{size(changes['bytes'][scheme])} of {size(changes['bytes']['float'])}"]


def next_commands(story: Json) -> str:
    """Commands for the first scheme's model folder, to be run in the work folder."""
    scheme = html.escape(next(iter(story["changes"]["schemes"])))
    model = f"models/{scheme}"
    lines = (
        f"regcache evaluate {model} --dataset folder --data-dir LABELLED_PICTURES",
        f"regcache embed {model} --images PICTURES --out features.npz",
        f"regcache export {model} --out {scheme}.stablehlo",
    )
    return (
        f"<p>The int8 encoder lies in <code>{model}</code> of the work folder. From there:</p>"
        f'<pre tabindex="0" aria-label="commands">{chr(10).join(lines)}</pre>'
    )


def size(number: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def _share(row: Json) -> str:
    return f"{100 * row['metrics']['acc1']:.1f} %"


def _within(changes: Json, number: int) -> str:
    low, high = changes["intervals"][number]["acc1"]
    return f"({100 * low:.1f} to {100 * high:.1f})"


def _points(difference: Json) -> str:
    low, high = difference["interval"]
    return f"{100 * difference['acc1']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"

"""The report's first screen: the verdict, gains and losses with their intervals, the search's claim, bytes and cost, what to do next."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

from regcache_jax.report.numbers import amount, points, share, size, within
from regcache_jax.report.tables import ROW_LABELS, sentences, table

Json = dict[str, Any]


def first_screen(rows: Sequence[Json], story: Json) -> str:
    """Verdict, a table with one line a scheme, and the next commands."""
    return (
        f'<div class="verdict">{sentences(verdict(rows, story))}</div>'
        + glance_table(rows, story)
        + '<p class="soft">In brackets: 95 of 100 samples of pictures would give a figure in there (top-1: Wilson; differences and cosine: '
        "bootstrap over pictures). Points: percentage points of top-1. Error: squared distance between float and quantised features of "
        f"unit length. {_work(story)}</p><h2>What to do next</h2>" + next_commands(story)
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
        f"{scheme}, {ROW_LABELS[kind]}: {share(rows[number])} of {seen} pictures are right {within(changes, number)}; "
        f"the float encoder has {share(rows[0])} {within(changes, 0)}."
    )
    if found["gain"] is not None:
        low, high = found["gain"]["interval"]
        if low <= 0 <= high:
            yield f"Whether registers gain anything over plain rounding cannot be told from these pictures: {points(found['gain'])}."
        else:
            word = "gain" if low > 0 else "lose"
            yield f"Registers {word} {points(found['gain'])} over plain rounding."
    if rivals := found["rivals"]:
        best = max(rivals, key=lambda each: rivals[each]["acc1"])
        low, high = rivals[best]["interval"]
        how = (
            "does as well, as far as these pictures tell"
            if low <= 0 <= high
            else "does better"
            if low > 0
            else "does worse"
        )
        yield f"The best row without registers ({ROW_LABELS[best]}) {how}: {share(rows[index[scheme, best]])}, {points(rivals[best])}."


GLANCE = (
    "plain", "with registers", "gained by registers", "against float", "error claimed by the search", "error on these pictures",
    "parameters", "work of an image",
)  # fmt: skip


def glance_table(rows: Sequence[Json], story: Json) -> str:
    """A column a scheme: plain, with registers, the differences, the error that was claimed and that was found, bytes, cost."""
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
    cells = ["&ndash;" if number is None else f"{share(rows[number])} {within(changes, number)}" for number in numbers]
    cells.append("&ndash;" if found["gain"] is None else points(found["gain"]))
    cells.append(points(found["loss"]))
    searched, number = story["search"].get(scheme), numbers[1]
    if searched is None or number is None:
        cells += ["&ndash;", "&ndash;"]
    else:
        low, high = changes["intervals"][number]["cosine"]
        measured = 2 * (1 - rows[number]["metrics"]["cosine"])
        cells.append(f"{searched['error']:.3g} &plusmn; {searched['claim']['spread']:.1g}")
        cells.append(f"{measured:.3g} ({2 * (1 - high):.3g} to {2 * (1 - low):.3g})")
    cells.append(f"{size(changes['bytes'][scheme])} of {size(changes['bytes']['float'])}")
    (whole,), (_, registered) = story["costs"]["of"]["float"], story["costs"]["of"][scheme]
    return [*cells, f"{amount(registered)} of {amount(whole)} ({registered / whole:.0%})"]


def _work(story: Json) -> str:
    """What the last line counts, and how cycles are had where they were not asked for."""
    if story["config"].get("cost", "model") != "model":
        return f"Work: {html.escape(story['costs']['unit'])}."
    return (
        f"Work: {html.escape(story['costs']['unit'])}, where one in float counts twice (a model, not a measurement). "
        "<code>regcache run … --config.cost=v5e:2x2</code> (extra <code>tpu</code>) asks a TPU&rsquo;s compiler for cycles instead."
    )


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

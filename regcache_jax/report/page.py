"""The report: one self-contained HTML page that tells what was gained, what was lost and why."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from regcache_jax.files.paths import write_whole
from regcache_jax.report.document import document
from regcache_jax.report.first import first_screen
from regcache_jax.report.flips import flips_section
from regcache_jax.report.plots import COLOURS, bars, cells, heat_map, heat_scale, norms_by_block, scatter
from regcache_jax.report.rivals import rivals_section
from regcache_jax.report.tables import (
    ROW_LABELS,
    TRIAL_KINDS,
    chosen_table,
    results_table,
    sentences,
    table,
    trial_kind,
    trials_table,
)

Json = dict[str, Any]

BUNDLED_NOTE = (
    "The bundled encoder's outliers were trained and planted on purpose, it met register-like prefixes in training, and the "
    "harm of the outliers was amplified at export. That its accuracy is recovered shows that the software works; it is no "
    "evidence for the method on real encoders."
)

NEARNESS = {"plain": "without registers", "registers": "with registers", "auto": "by auto"}
"""Rows of the errors of patches, as they are called."""
BAR_COLOURS = {"plain": COLOURS[0], "registers": COLOURS[1]}


def write_page(path: epath.PathLike, rows: Sequence[Json], story: Json) -> None:
    """Writes the page, beside its final name first."""
    write_whole(path, page(rows, story).encode())


def page(rows: Sequence[Json], story: Json) -> str:
    """The whole page as HTML."""
    title = f"{rows[0]['model']}: float, quantised, and quantised with registers"
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        opening(rows, story),
        first_screen(rows, story),
        "<h2>Results</h2>",
        accuracy_bars(rows),
        results_table(rows),
        '<p class="soft">Cosine, relative error and agreement compare features and top-1 predictions with the float encoder\'s '
        "on the same pictures.</p>",
        rivals_section(rows, story),
        "<h2>What changed, picture by picture</h2>",
        flips_section(story["changes"]),
        "<h2>What inspect found</h2>",
        sentences(finding["sentence"] for finding in story["inspect"]["verdict"]["findings"]),
        sensitivity(story),
        "<h3>Norms by block</h3>",
        f"<p>Largest and median l-inf norm of the patch tokens at every block's input, over {story['inspect']['profile']['num_images']} "
        f"reference pictures, without and with the registers found for {html.escape(story['figures']['scheme'])}.</p>",
        norms_by_block({"no registers": story["inspect"]["profile"], "registers": story["figures"]["profile"]}),
        "<h3>Where the large tokens sit</h3>",
        sink_section(story),
        "<h3>How near every patch is</h3>",
        patch_section(story["figures"]),
        "<h2>What was chosen, and why</h2>",
        search_section(story["search"]),
        "<h2>How it was made</h2>",
        "<p>The same page again: <code>regcache run --config CONFIG --workdir DIR</code> with this config.</p>",
        table(("setting", "value"), _settings(story["config"]), name="settings", words=True),
        "<h3>With what</h3>",
        table(("what", "version"), _words(story["made_with"]), name="versions", words=True),
    ]
    return document(title, "".join(sections))


def opening(rows: Sequence[Json], story: Json) -> str:
    """What was measured, and what must be known before any number is read."""
    first, config = rows[0], story["config"]
    protocol = "DINOv2's protocol" if first["task"] == "knn" else "open_clip's protocol"
    weights = "output channel" if config["weights"] == "channel" else "tensor"
    notes = [BUNDLED_NOTE] if config["model"] == "bundled" else []
    if first["quantization"].get("valid") is False:
        notes.append(
            f"The float encoder gives {first['metrics']['acc1']:.1%} where {config['expected_acc1']:.1%} is expected: "
            "preprocessing, prompts or data differ, and the quantised rows are not valid."
        )
    return (
        f'<p class="soft">{html.escape(first["task"])} on {html.escape(first["dataset"])}, '
        f"n = {first['quantization']['examples']}, {protocol}; integers throughout, round to nearest, activations static per "
        f"tensor unless the row says otherwise, weights per {weights}.</p>"
        + "".join(f'<p class="note">{html.escape(text)}</p>' for text in notes)
    )


def accuracy_bars(rows: Sequence[Json]) -> str:
    """Top-1 of every row, a picture a scheme, with the float encoder's as a line across."""
    line = ("float", rows[0]["metrics"]["acc1"])
    pictures = []
    for scheme in dict.fromkeys(row["quantization"]["scheme"] for row in rows[2:]):
        of_scheme = [row for row in rows if row["quantization"]["scheme"] == scheme]
        entries = [
            (ROW_LABELS[name], row["metrics"]["acc1"], BAR_COLOURS.get(name, COLOURS[3]))
            for row in of_scheme
            for name in [row["quantization"]["row"]]
        ]
        pictures.append(f"<div><h3>{html.escape(scheme)}</h3>{bars(entries, line, f'top-1 at {scheme}')}</div>")
    return f'<div class="plots">{"".join(pictures)}</div>'


def sensitivity(story: Json) -> str:
    """Which block registers are needed in, and what each site alone costs without and with them, shaded alike."""
    verdict, found, after = story["inspect"]["verdict"], story["inspect"]["sensitivity"], story["figures"]["errors"]
    block, site = verdict["most_sensitive"]
    largest = [max(map(max, errors)) for errors in (found["errors"], after)]
    shown = "".join(
        f"<h3>{title}</h3>"
        f'<div class="wide" role="region" tabindex="0" aria-label="{title}">'
        f"{cells(errors, found['sites'], 'block', title, largest[0])}</div>"
        for title, errors in (("Without registers", found["errors"]), ("With registers", after))
    )
    return (
        f"<p>The sensitive block is {verdict['sensitive_block']}. Quantised alone to w8a8, site {html.escape(site)} of block "
        f"{block} costs most: {largest[0]:.2g}. With the registers found for {html.escape(story['figures']['scheme'])} the most that a "
        f"site costs is {largest[1]:.2g}. Mean squared error of the unit features, one site of one block at a time, on one scale of "
        f"shades:</p>{shown}"
    )


def sink_section(story: Json) -> str:
    """Example pictures beside the norms of their patches, without and with registers, on one scale; and over the whole set, how
    often each place holds a sink."""
    maps = story["figures"]["maps"]
    largest = max(value for entry in maps for row in entry["plain"] for value in row)
    figures = [
        f'<figure><div class="row"><img alt="{html.escape(entry["name"])}" src="data:image/png;base64,{entry["thumbnail"]}">'
        f"{heat_map(entry['plain'], largest, title='norms without registers')}"
        f"{heat_map(entry['registers'], largest, title='norms with registers')}</div>"
        f"<figcaption>{html.escape(entry['name'])}: largest {max(map(max, entry['plain'])):.0f} without, "
        f"{max(map(max, entry['registers'])):.0f} with registers</figcaption></figure>"
        for entry in maps
    ]
    block = maps[0]["block"]
    shares = [
        _grid(profile["sink_share"][block]) for profile in (story["inspect"]["profile"], story["figures"]["profile"])
    ]
    counts = [
        profile["sinks_per_image"][block] for profile in (story["inspect"]["profile"], story["figures"]["profile"])
    ]
    often = max((value for share in shares for row in share for value in row), default=0.0)
    where = (
        f'<figure><div class="row">{heat_map(shares[0], often, title="share of pictures with a sink here, without registers")}'
        f"{heat_map(shares[1], often, title='share of pictures with a sink here, with registers')}</div>"
        f"<figcaption>all reference pictures: where sinks sit, without and with registers<br>(brightest: {often:.0%} of the "
        f"pictures); {counts[0]:.1f} and {counts[1]:.1f} sinks a picture</figcaption></figure>"
    )
    return (
        f"<p>Each picture, then the l-inf norms of its patches at the input of block {block}, without and with registers, on one "
        f"logarithmic scale:</p>{heat_scale(largest)}"
        f'<div class="maps">{"".join(figures)}{where}</div>'
    )


def patch_section(figures: Json) -> str:
    """How near patches are to their float selves without and with registers (and by `auto`, where a run was given its encoder), on average
    and at worst, and where they are not."""
    found, scheme = figures["patches"]["rows"], html.escape(figures["scheme"])
    rows = {label: found[name] for name, label in NEARNESS.items() if name in found}
    largest = max(value for each in rows.values() for grid in each["maps"] for row in grid for value in row)
    said = "; ".join(
        f"{label}: {each['mean']:.3g} on average, {each['worst']:.3g} exceeded by one patch in a hundred"
        for label, each in rows.items()
    )
    shown = []
    for number, entry in enumerate(figures["maps"]):
        maps = {label: each["maps"][number] for label, each in rows.items()}
        drawn = "".join(heat_map(grid, largest, title=f"error of patches {label}") for label, grid in maps.items())
        most = ", ".join(f"{max(map(max, grid)):.2g} {label}" for label, grid in maps.items())
        shown.append(
            f'<figure><div class="row"><img alt="{html.escape(entry["name"])}" src="data:image/png;base64,{entry["thumbnail"]}">'
            f"{drawn}</div><figcaption>{html.escape(entry['name'])}: largest {most}</figcaption></figure>"
        )
    return (
        f"<p>What reads patches (a language model, a dense head) sees each place. Length of the difference over the length of the float "
        f"patch, {scheme}, {figures['patches']['pictures']} pictures: {said}. Each picture, then its patches {', '.join(rows)}, "
        f'brightest at {largest:.2g}:</p><div class="maps">{"".join(shown)}</div>'
    )


def _grid(tokens: Sequence[float]) -> list[list[float]]:
    """The patches of a row of tokens (the few tokens in front of them fill no further row) as rows of the grid."""
    side = math.isqrt(len(tokens))
    patches = list(tokens)[-side * side :]
    return [patches[first : first + side] for first in range(0, side * side, side)]


def search_section(searched: dict[str, Json]) -> str:
    """What was chosen for every scheme, how the error fell, and what else was tried."""
    pictures = []
    for scheme, found in searched.items():
        groups: dict[str, list[tuple[float, float]]] = {kind: [] for kind in TRIAL_KINDS}
        for number, row in enumerate(found["trials"]):
            groups[trial_kind(row["numbers"])].append((number + 1.0, row["error"]))
        plot = scatter(groups, "trial", f"error of every trial at {scheme}")
        pictures.append(f"<div><h3>{html.escape(scheme)}</h3>{plot}</div>")
    return (
        sentences(f"{name}: {result['sentence']}" for name, result in searched.items())
        + chosen_table(searched)
        + "<p>The search needs no labels: its error is the squared distance between float and quantised features of unit length, "
        "on reference pictures that the results do not use. What it says of a plan is measured on pictures held out of search and "
        "calibration; the spread is that of other calibration pictures and of the held-out ones.</p>"
        f'<h3>Every trial</h3><p class="soft">Error in the order of the trials: first a coarse grid on few pictures, then the '
        f"best on more; of a trial given up early, the least that its error can be.</p>"
        f'<div class="plots">{"".join(pictures)}</div>'
        "<h3>The best of each kind</h3>" + trials_table(searched)
    )


def _settings(config: Json, before: str = "") -> Iterator[list[str]]:
    """Every field of a config, as `--config.NAME` takes it."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{before}{name}.")
        else:
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else json.dumps(value)
            yield [f"<code>{html.escape(before + name)}</code>", html.escape(text)]


def _words(pairs: Json) -> Iterator[list[str]]:
    return ([html.escape(name), html.escape(value)] for name, value in pairs.items())

"""The report: one self-contained HTML page (no network; one script of a few lines sorts tables) that tells what was gained, what was
lost and why."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from regcache_jax.files.paths import write_whole
from regcache_jax.report.first import first_screen
from regcache_jax.report.flips import flips_section
from regcache_jax.report.plots import COLOURS, bars, cells, heat_map, heat_scale, norms_by_block, scatter
from regcache_jax.report.tables import (
    ROW_LABELS,
    TRIAL_KINDS,
    chosen_table,
    results_table,
    sentences,
    trial_kind,
    trials_table,
)

Json = dict[str, Any]

STYLE = """
:root{color-scheme:light dark;--ink:#1c1917;--soft:#57534e;--paper:#fafaf9;--card:#fff;--edge:#e7e5e4;
--first:#c2410c;--second:#0f766e;--third:#6d28d9;--fourth:#64748b}
@media(prefers-color-scheme:dark){:root{--ink:#e7e5e4;--soft:#a8a29e;--paper:#1c1917;--card:#292524;--edge:#44403c;
--first:#fb923c;--second:#2dd4bf;--third:#a78bfa;--fourth:#94a3b8}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.2rem 4rem}
h1{font-size:1.7rem;margin:.2rem 0}h2{font-size:1.25rem;margin:2.6rem 0 .6rem}h3{font-size:1rem;margin:1.6rem 0 .4rem}
p,ul,ol{max-width:46rem}code,pre{font:.9em ui-monospace,monospace}pre{overflow-x:auto}
.note{border-left:4px solid var(--first);padding:.6rem 1rem;background:var(--card)}
.soft{color:var(--soft)}.wide{overflow-x:auto}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(24rem,100%),1fr));gap:.6rem 1.5rem;margin-bottom:1rem}
table{border-collapse:collapse;background:var(--card);font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.35rem .7rem;border-bottom:1px solid var(--edge);text-align:right;white-space:nowrap}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
td{vertical-align:middle}th{white-space:normal;vertical-align:bottom}th button{font:inherit;color:inherit;background:none;
border:0;padding:0;cursor:pointer;text-align:inherit;text-decoration:underline dotted}
.words td,.words th{text-align:left;white-space:normal;min-width:5rem}
.small{width:32px;height:32px;display:block}.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.verdict{font-size:1.05rem}summary{cursor:pointer;padding:.3rem 0}pre{background:var(--card);border:1px solid var(--edge);padding:.7rem}
tr.full td{font-weight:650}tr.first td{border-top:2px solid var(--soft)}sup{line-height:0}
.maps{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;background:var(--card);padding:.6rem;border:1px solid var(--edge)}
.row{display:flex;gap:.4rem}.row svg,.row img{width:104px;height:104px;display:block}
figcaption{font-size:.8rem;color:var(--soft)}
@media print{:root{--ink:#000;--soft:#333;--paper:#fff;--card:#fff;--edge:#999}main{max-width:none;padding:0}th,td{white-space:normal}
.wide{overflow:visible}h2,h3{break-after:avoid}tr,figure,svg{break-inside:avoid}}
"""

SCRIPT = """
document.querySelectorAll("table.sortable th button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0], column = head.cellIndex;
  const falls = head.getAttribute("aria-sort") === "ascending";
  head.parentElement.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", falls ? "descending" : "ascending");
  const text = row => row.cells[column].textContent;
  const rows = [...body.rows].sort((a, b) => text(a).localeCompare(text(b), "en", {numeric: true}));
  body.append(...(falls ? rows.reverse() : rows));
}));
"""
"""Sorts a table by the column whose head is pressed; pressed again, the other way round."""

BUNDLED_NOTE = (
    "The bundled encoder's outliers were trained and planted on purpose, it met register-like prefixes in training, and the "
    "harm of the outliers was amplified at export. That its accuracy is recovered shows that the software works; it is no "
    "evidence for the method on real encoders."
)

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
        "<h2>What changed, picture by picture</h2>",
        flips_section(story["changes"]),
        "<h2>What inspect found</h2>",
        sentences(finding["sentence"] for finding in story["inspect"]["verdict"]["findings"]),
        sensitivity(story["inspect"]),
        "<h3>Norms by block</h3>",
        f"<p>Largest and median l-inf norm of the patch tokens at every block's input, over {story['inspect']['profile']['num_images']} "
        f"reference pictures, without and with the registers found for {html.escape(story['figures']['scheme'])}.</p>",
        norms_by_block({"no registers": story["inspect"]["profile"], "registers": story["figures"]["profile"]}),
        "<h3>Where the large tokens sit</h3>",
        sink_section(story),
        "<h2>What was chosen, and why</h2>",
        search_section(story["search"]),
        "<h2>How it was made</h2>",
        f"<p>{_versions(rows[0])}. The same page again: <code>regcache run --config CONFIG --workdir DIR</code> with this "
        "config.</p><details><summary>config</summary>"
        f'<pre tabindex="0" aria-label="config">{html.escape(json.dumps(story["config"], indent=1))}</pre></details>',
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(sections)}</main><script>{SCRIPT}</script></body></html>"
    )


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


def sensitivity(inspected: Json) -> str:
    """Which block registers are needed in, and what each site alone costs."""
    verdict, found = inspected["verdict"], inspected["sensitivity"]
    block, site = verdict["most_sensitive"]
    return (
        f"<p>The sensitive block is {verdict['sensitive_block']}. Quantised alone to w8a8, site {html.escape(site)} of block "
        f"{block} costs most. Mean squared error of the unit features, one site of one block at a time:</p>"
        '<div class="wide" role="region" tabindex="0" aria-label="error of one site">'
        f"{cells(found['errors'], found['sites'], 'block', 'error of one site')}</div>"
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
    block, grid = maps[0]["block"], len(maps[0]["plain"])
    shares = [
        _grid(profile["sink_share"][block], grid)
        for profile in (story["inspect"]["profile"], story["figures"]["profile"])
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


def _grid(tokens: Sequence[float], side: int) -> list[list[float]]:
    """The patches of a row of tokens (class token and trained registers stand before them) as rows of the grid."""
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


def _versions(row: Json) -> str:
    return html.escape(", ".join(f"{name} {version}" for name, version in row["quantization"]["versions"].items()))

"""The report: one self-contained HTML page (no network, no script) that tells what was gained, what was lost and why."""

from __future__ import annotations

import html
import json
import uuid
from collections.abc import Sequence
from typing import Any

from etils import epath

from regcache_jax.errors import UserError
from regcache_jax.report.plots import heat_map, norms_by_block

Json = dict[str, Any]

STYLE = """
:root{color-scheme:light dark;--ink:#1c1917;--soft:#57534e;--paper:#fafaf9;--card:#fff;--edge:#e7e5e4;
--first:#c2410c;--second:#0f766e}
@media(prefers-color-scheme:dark){:root{--ink:#e7e5e4;--soft:#a8a29e;--paper:#1c1917;--card:#292524;--edge:#44403c;
--first:#fb923c;--second:#2dd4bf}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.2rem 4rem}
h1{font-size:1.7rem;margin:.2rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}p{max-width:46rem}
.note{border-left:4px solid var(--first);padding:.6rem 1rem;background:var(--card)}
.soft{color:var(--soft)}.wide{overflow-x:auto}
table{border-collapse:collapse;background:var(--card);font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.35rem .7rem;border-bottom:1px solid var(--edge);text-align:right;white-space:nowrap}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
tr.full td{font-weight:650}tr.first td{border-top:2px solid var(--soft)}
.maps{display:flex;flex-wrap:wrap;gap:1rem}.maps figure{margin:0;background:var(--card);padding:.6rem;
border:1px solid var(--edge)}
.maps .row{display:flex;gap:.4rem}.maps svg,.maps img{width:104px;height:104px;display:block}
figcaption{font-size:.8rem;color:var(--soft)}
"""

KINDS = {
    "plain": "plain (no registers)",
    "registers": "registers (full plan)",
    "prefix-only": "prefix only",
    "delete-only": "delete only",
    "token": "per-token dynamic scales",
}

BUNDLED_NOTE = (
    "The bundled encoder's outliers were trained and planted on purpose, it met register-like prefixes in training, and the "
    "harm of the outliers was amplified at export. That its accuracy is recovered shows that the software works; it is no "
    "evidence for the method on real encoders."
)


def write_page(path: epath.PathLike, rows: Sequence[Json], story: Json) -> None:
    """Writes the page, beside its final name first."""
    path = epath.Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.write_text(page(rows, story))
    partial.replace(path)


def read_story(workdir: epath.PathLike) -> tuple[list[Json], Json]:
    """The rows and the story that `regcache run` left in a work folder. Raises UserError where there are none."""
    folder = epath.Path(workdir)
    try:
        return json.loads((folder / "results.json").read_text()), json.loads((folder / "story.json").read_text())
    except OSError:
        raise UserError(
            f"{folder} holds no finished run (results.json and story.json); `regcache run` makes one"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{folder}: results.json or story.json is damaged ({error}); run `regcache run` again"
        ) from None


def page(rows: Sequence[Json], story: Json) -> str:
    """The whole page as HTML."""
    first = rows[0]
    title = f"{first['model']}: float, quantised, and quantised with registers"
    bundled = story["config"]["model"] == "bundled"
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="soft">{html.escape(first["task"])} on {html.escape(first["dataset"])}, '
        f"n = {first['quantization']['examples']}, open_clip's protocol; integers throughout, activations static per tensor "
        "unless the row says otherwise, weights per "
        f"{'output channel' if story['config']['weights'] == 'channel' else 'tensor'}.</p>",
        f'<p class="note">{BUNDLED_NOTE}</p>' if bundled else "",
        "<h2>Results</h2>",
        results_table(rows),
        '<p class="soft">Cosine, relative error and agreement compare features and top-1 predictions with the float encoder\'s '
        "on the same pictures.</p>",
        "<h2>What inspect found</h2>",
        _list(finding["sentence"] for finding in story["inspect"]["verdict"]["findings"]),
        sensitivity_sentence(story["inspect"]),
        "<h2>Norms by block</h2>",
        '<div class="wide">',
        norms_by_block({"no registers": story["inspect"]["profile"], "registers": story["figures"]["profile"]}),
        "</div>",
        "<h2>Where the large tokens sit</h2>",
        sink_section(story["figures"]["maps"]),
        "<h2>What was chosen, and why</h2>",
        search_table(story["search"]),
        _list(f"{name}: {result['sentence']}" for name, result in story["search"].items()),
        "<p>The search needs no labels: its error is the squared distance between float and quantised features of unit length, "
        "on reference pictures that the table above does not use. A plan is kept only if it gains more than twice the jitter "
        "that redrawing the calibration pictures causes.</p>",
        f'<p class="soft">Made with {_versions(first)}.</p>',
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(sections)}</main></body></html>"
    )


def results_table(rows: Sequence[Json]) -> str:
    """Every result row; the full plan stands out, a line parts the schemes."""
    columns = (
        ("acc1", "top-1"),
        ("acc5", "top-5"),
        ("cosine", "cosine"),
        ("relative_error", "rel. error"),
        ("agreement", "agrees"),
    )
    head = "".join(f"<th>{name}</th>" for name in ("scheme", "", *(label for _, label in columns), "pictures"))
    body, before = [], None
    for row in rows:
        quantization, metrics = row["quantization"], row["metrics"]
        kind = quantization["row"].split(" ")[-1]
        what = KINDS.get(kind, KINDS["plain"])
        cells = [quantization["scheme"], what]
        cells += [_figure(metrics.get(name), name) for name, _ in columns] + [str(quantization["examples"])]
        marks = [
            name
            for name, on in (("full", quantization["registers"]), ("first", quantization["scheme"] != before))
            if on
        ]
        before = quantization["scheme"]
        body.append(f'<tr class="{" ".join(marks)}">{"".join(f"<td>{html.escape(cell)}</td>" for cell in cells)}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _figure(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if name in ("cosine", "relative_error") else f"{100 * value:.1f} %"


def sensitivity_sentence(inspected: Json) -> str:
    """Which block registers are needed in, and which site alone costs most."""
    verdict, errors = inspected["verdict"], inspected["sensitivity"]["errors"]
    block, site = verdict["most_sensitive"]
    error = errors[block][inspected["sensitivity"]["sites"].index(site)]
    return (
        f"<p>Sinks begin in block {verdict['sensitive_block']}. Quantised alone, site {html.escape(site)} of block {block} costs "
        f"most: mean squared error {error:.3g} of unit features.</p>"
    )


def search_table(searched: Json) -> str:
    """The chosen numbers of every scheme."""
    names = ("start", "stop", "copies", "delete_block", "delete_count", "num_registers")
    head = "".join(
        f"<th>{name}</th>" for name in ("scheme", "", *names, "error without", "error with", "jitter", "trials")
    )
    body = []
    for scheme, result in searched.items():
        numbers = [f"{result['numbers'][name]:g}" for name in names]
        figures = [f"{result[name]:.3g}" for name in ("baseline_error", "error", "jitter")]
        kept = "kept" if result["helps"] else "no plan"
        cells = [scheme, kept, *numbers, *figures, str(len(result["trials"]))]
        body.append(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def sink_section(maps: Sequence[Json]) -> str:
    """Example pictures beside the norms of their patches, without and with registers, on one scale."""
    largest = max(value for entry in maps for row in entry["plain"] for value in row)
    figures = [
        f'<figure><div class="row"><img alt="{html.escape(entry["name"])}" src="data:image/png;base64,{entry["thumbnail"]}">'
        f"{heat_map(entry['plain'], largest, title='norms without registers')}"
        f"{heat_map(entry['registers'], largest, title='norms with registers')}</div>"
        f"<figcaption>{html.escape(entry['name'])}: largest {max(map(max, entry['plain'])):.0f} without registers, "
        f"{max(map(max, entry['registers'])):.0f} with</figcaption></figure>"
        for entry in maps
    ]
    block = maps[0]["block"]
    return (
        f"<p>Each picture, then the l-inf norms of its patches at the input of block {block}, without and with registers, on one "
        f'logarithmic scale.</p><div class="maps">{"".join(figures)}</div>'
    )


def _list(sentences: Any) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _versions(row: Json) -> str:
    return html.escape(", ".join(f"{name} {version}" for name, version in row["quantization"]["versions"].items()))

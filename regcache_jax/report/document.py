"""What every page shares: its looks on screens of any size, light, dark and printed, and a script of a few lines that sorts tables.

A page is one file and asks nothing of a network."""

from __future__ import annotations

import html

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
.soft{color:var(--soft)}.wide{overflow-x:auto}.wide>svg{min-width:calc(.7*var(--full))}.remark{display:block;text-align:left;min-width:9rem}
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
.row{display:flex;flex-wrap:wrap;gap:.4rem}.row svg,.row img{width:104px;height:104px;display:block}
figcaption{font-size:.8rem;color:var(--soft)}
@media(max-width:600px){main{padding:1rem .8rem 3rem}th,td{white-space:normal;padding:.3rem .35rem;font-size:.8rem}}
@media print{:root{--ink:#000;--soft:#333;--paper:#fff;--card:#fff;--edge:#999}main{max-width:none;padding:0}th,td{white-space:normal}
.wide{overflow:visible}h2,h3{break-after:avoid}tr,figure,svg{break-inside:avoid}details::details-content{content-visibility:visible}}
"""

SCRIPT = """
document.querySelectorAll("table.sortable th button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0], column = head.cellIndex;
  const falls = head.getAttribute("aria-sort") === "ascending";
  head.parentElement.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", falls ? "descending" : "ascending");
  const text = row => row.cells[column].textContent;
  const number = row => parseFloat(text(row)), order = (a, b) => text(a).localeCompare(text(b), "en", {numeric: true});
  const counted = [...body.rows].every(row => !isNaN(text(row).replace(/\\s*%$/, "")));
  const rows = [...body.rows].sort(counted ? (a, b) => number(a) - number(b) : order);
  body.append(...(falls ? rows.reverse() : rows));
}));
"""
"""Sorts a table by the column whose head is pressed; pressed again, the other way round."""


def document(title: str, body: str) -> str:
    """A whole page."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main>"
        f"<script>{SCRIPT}</script></body></html>"
    )

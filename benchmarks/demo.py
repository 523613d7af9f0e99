"""The whole demo, held to the table in README.md and docs/choose.md, or writing it.

python benchmarks/demo.py                # minutes; --workdir FOLDER keeps what it makes, and goes on there
python benchmarks/demo.py --write        # the table anew, in both pages
"""

import argparse
import re
import tempfile
from pathlib import Path

from regcache_jax.cli.run import load_config, run_and_show
from regcache_jax.files import results

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/choose.md")
COLUMNS = {"plain": "plain", "registers": "+ registers", "token": "scales a token"}
"""Rows of the demo that the table has, and what they are called there."""
TABLE = re.compile(r"^\| top-1, %, n = .*\n\|---\|.*\n(?:\|.*\n)+", re.MULTILINE)
POINTS = 1.0
"""What one unit in a last place moves between machines."""


def table(rows: list[dict]) -> str:
    """The table of some result rows, in Markdown."""
    found = {(row["quantization"]["scheme"], row["quantization"]["row"]): row for row in rows}

    def top1(scheme: str, kind: str) -> str:
        return f"{100 * found[scheme, kind]['metrics']['acc1']:.1f}"

    schemes = dict.fromkeys(scheme for scheme, _ in found if scheme != "float")
    seen = rows[0]["quantization"]["examples"]
    head = f"| top-1, %, n = {seen}, float {top1('float', 'plain')} | {' | '.join(COLUMNS.values())} |\n|---|{'---:|' * len(COLUMNS)}\n"
    lines = (" | ".join([scheme.upper(), *(top1(scheme, kind) for kind in COLUMNS)]) for scheme in schemes)
    return head + "".join(f"| {line} |\n" for line in lines)


def figures(page: str) -> dict[tuple[str, str], float]:
    """Top-1 by scheme and row, as a page's table has it."""
    (shown,) = TABLE.findall(page)
    head, _, *lines = shown.splitlines()
    found = {("float", "plain"): float(re.findall(r"float ([\d.]+)", head)[0])}
    for line in lines:
        scheme, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found |= {(scheme.lower(), kind): float(cell) for kind, cell in zip(COLUMNS, cells, strict=True)}
    return found


def differences(rows: list[dict], page: str) -> list[str]:
    """What of some rows is not as a page's table has it, a line each; rows that it has not are left out."""
    promised, said = figures(page), []
    for row in rows:
        cell = (row["quantization"]["scheme"], row["quantization"]["row"])
        top1 = 100 * row["metrics"]["acc1"]
        if cell in promised and abs(top1 - promised[cell]) > POINTS:
            said.append(f"{' '.join(cell)}: {top1:.1f}, promised {promised[cell]}")
    return said


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(chosen.workdir or kept)
        run_and_show(load_config("demo"), str(folder))
        rows = results.read(folder / "results.json")
    for name in PAGES:
        text = (ROOT / name).read_text()
        if chosen.write:
            (ROOT / name).write_text(TABLE.sub(lambda _: table(rows), text))
        missed = [] if chosen.write else differences(rows, text)
        print(f"{name}: {'; '.join(missed) or ('written' if chosen.write else 'as it says')}")
        if missed:
            raise SystemExit(1)

"""The report in a browser: no error, no scrolling sideways, nothing that some cannot read, and the figures of results.json."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import stories

from regcache_jax.files import results
from regcache_jax.files.paths import write_json
from regcache_jax.files.sealed import seal
from regcache_jax.report import numbers, tables
from regcache_jax.report.page import write_page
from regcache_jax.report.story import read_story

BROWSER_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
)  # fmt: skip


class Tables(HTMLParser):
    """The texts of a page's tables, row by row, under what each is called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.name, self.inside = "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.name = dict(attrs).get("aria-label") or self.name
        self.inside = tag == "td" or (self.inside and tag != "sup")
        if tag == "tr":
            self.found.setdefault(self.name, []).append([])
        if tag == "td":
            self.found[self.name][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "sup")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[self.name][-1][-1] += data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "look"), [(1400, ()), (420, ()), (420, ("--force-dark-mode",))], ids=["wide", "narrow", "dark"]
)
def test_the_page_opens_in_a_browser_without_errors_never_scrolls_sideways_and_can_be_read_by_everyone(
    tmp_path, width, look
):
    """What the script of `accessible.js` finds is written into the page's title: serious faults of the kinds that axe-core knows. The
    figures that the browser shows are those of results.json."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser is not None, "no Chromium on this machine; `make test` installs Debian's where it can"
    results.write(tmp_path / "results.json", stories.rows())
    write_json(tmp_path / "story.json", seal(stories.story()))
    file = tmp_path / "page.html"
    write_page(file, *read_story(tmp_path))
    check = (Path(__file__).parent / "accessible.js").read_text()
    file.write_text(file.read_text().replace("</body>", f"<script>{check}</script></body>"))
    flags = [*BROWSER_FLAGS, *look, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2400"]
    command = [browser, *flags, "--dump-dom", file.as_uri()]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in finished.stderr, finished.stderr[-2000:]
    assert "<title>0 faults</title>" in finished.stdout, re.findall("<title>(.*?)</title>", finished.stdout)[0]
    assert finished.stdout.count("<svg") >= 8
    shown = Tables()
    shown.feed(finished.stdout)
    for cells, row in zip(shown.found["results"][1:], results.read(tmp_path / "results.json"), strict=True):
        metrics, entry = row["metrics"], row["quantization"]
        assert (cells[0], cells[1].strip()) == (entry["scheme"], tables.ROW_LABELS[entry["row"]])
        assert cells[2:4] == [numbers.percent(metrics["acc1"]), numbers.percent(metrics["acc5"])]
        assert cells[4] == (f"{metrics['cosine']:.4f}" if "cosine" in metrics else "\N{EN DASH}") and cells[-1] == "816"

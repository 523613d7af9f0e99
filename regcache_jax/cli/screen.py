"""What a person sees: tables, and progress that is a bar on a terminal and quiet lines in a pipe.

Of several processes (`--distributed`) the first alone is seen and writes."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from regcache_jax.cli.columns import Columns
from regcache_jax.core.errors import escaped
from regcache_jax.core.observer import Observer
from regcache_jax.files.distributed import is_first
from regcache_jax.files.progress import bar as progress


def say(text: str = "") -> None:
    """A line on standard output; what names in it could do to a terminal is written out."""
    if is_first():
        click.echo(wrapped(escaped(text), sys.stdout.isatty()))


def tell(text: str) -> None:
    """The same on standard error."""
    if is_first():
        click.echo(wrapped(escaped(text), sys.stderr.isatty()), err=True)


def foretell(seconds: float, bounded_by: str) -> None:
    """Says before long work how long it will take, and what bounds it."""
    from regcache_jax.studies.pace import forecast

    if (sentence := forecast(seconds, bounded_by)) is not None:
        tell(sentence)


def wrapped(text: str, on_terminal: bool) -> str:
    """A text as it is written: on a terminal broken between words, in a pipe one line."""
    if not on_terminal:
        return text
    width, indent = shutil.get_terminal_size().columns, " " * (len(text) - len(text.lstrip()))
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def digits(number: float | None) -> str | None:
    """Three significant digits, for numbers of any size."""
    return None if number is None else f"{number:.3g}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], spare: Sequence[str] = ()) -> None:
    """A table: drawn on a terminal, tab-separated in a pipe. Floats are shown with three digits after the point. `spare` columns, the last
    first, are left out of a terminal that is too narrow for whole words."""
    texts = [
        [f"{cell:.3f}" if isinstance(cell, float) else "" if cell is None else escaped(str(cell)) for cell in row]
        for row in rows
    ]
    if not is_first():
        return
    if not sys.stdout.isatty():
        for line in ([escaped(column) for column in columns], *texts):
            click.echo("\t".join(line))
        return
    console, left = Console(), [*spare]
    heads = [escaped(column).replace("_", " ") for column in columns]  # so that it may wrap; a cut name is no name
    shown = Columns(heads, texts)
    while left and sum(shown.whole) > shown.room(console.width):
        number = columns.index(left.pop())
        columns = [*columns[:number], *columns[number + 1 :]]
        shown = shown.without(number)
    table = Table(
        title=Text(escaped(title)),
        title_justify="left",
        box=None,
        padding=(0, shown.gap(console.width), 0, 0),
        pad_edge=False,
    )
    for head, figures, width in zip(shown.heads, shown.figures, shown.widths(console.width), strict=True):
        table.add_column(Text(head), justify="right" if figures else "left", overflow="fold", width=width)
    for row in shown.rows:
        table.add_row(*map(Text, row))  # no markup: brackets are brackets
    console.print(table)


class Bars(Observer, contextlib.AbstractContextManager):
    """Hears of stages and draws one bar for each."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._update: Any = None
        self._done = 0

    def started(self, stage: str) -> None:
        """A new bar."""
        self.close()
        self._bar = progress(stage)
        self._update, self._done = self._bar.__enter__(), 0

    def skipped(self, stage: str) -> None:
        """A line."""
        self.close()
        tell(f"{stage}: unchanged, kept")

    def moved(self, done: int, total: int | None = None, note: str = "") -> None:
        """Moves the bar."""
        if self._update is not None:
            self._update(done - self._done, total=total, note=note)
            self._done = done

    def said(self, text: str) -> None:
        """A line on standard output."""
        self.close()
        say(text)

    def close(self) -> None:
        """Ends the bar of the last stage."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = self._update = None

    def __exit__(self, *_: object) -> None:
        self.close()


class BarsOfCells(Bars):
    """The same with one bar for all cells of a grid."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label, self._counting = label, False

    def started(self, stage: str) -> None:
        """A bar for a search, or for the first of the cells."""
        if stage.startswith("search_") or not self._counting:
            self._counting = not stage.startswith("search_")
            super().started(self._label if self._counting else stage)

    def skipped(self, stage: str) -> None:
        """A line for a search; cells that are kept move the bar."""
        if stage.startswith("search_"):
            super().skipped(stage)
        else:
            self.started(stage)


def write_json(path: str | None, tree: object) -> None:
    """Writes `--json FILE` (whole or not at all); nothing without it."""
    if path is not None and is_first():
        from regcache_jax.files.paths import write_json as write

        write(path, json.loads(json.dumps(tree)))


def write_text(path: str, text: str) -> None:
    """Writes a text file, whole or not at all."""
    from regcache_jax.files.paths import write_whole

    write_whole(path, text.encode())

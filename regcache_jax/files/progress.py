"""Progress as a person sees it: a bar on a terminal, and in a pipe or a notebook a line now and then.

Of several processes (`--distributed`) the first alone is seen."""

from __future__ import annotations

import collections
import contextlib
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import click
from rich import progress as drawing
from rich.console import Console
from rich.text import Text

from regcache_jax.core.errors import escaped
from regcache_jax.core.progress import Progress
from regcache_jax.files.distributed import is_first

EVERY = 30.0
"""Seconds between two lines of progress in a pipe."""
ENOUGH = 3
"""Steps that say how long the others will take."""


@runtime_checkable
class Update(Protocol):
    """Moves a progress display on."""

    def __call__(self, advance: int = 1, total: int | None = None, note: str = "") -> None:
        """`advance` steps more, of `total` if that has changed, with a short note."""


@contextlib.contextmanager
def progress(label: str) -> Iterator[Progress]:
    """Shows how a call gets on that takes a `progress`, in a script and in a notebook.

    with rc.progress("searching") as told:
        result = rc.search(encoder, images, "w8a8", progress=told)
    """
    with bar(label) as update:
        yield moving(update)


def moving(update: Update) -> Progress:
    """Moves a display for what tells of how many steps are done, and of how many there are."""
    shown = 0

    def moved(done: int, total: int | None = None, note: str = "") -> None:
        nonlocal shown
        update(done - shown, total=total, note=note)
        shown = done

    return moved


class Steps(drawing.MofNCompleteColumn):
    """How many of how many; seconds so far where nobody knows how many there will be."""

    def render(self, task: drawing.Task) -> Text:
        """The column's text for one bar."""
        return super().render(task) if task.total is not None else Text(f"{task.elapsed or 0:.0f} s")


@contextlib.contextmanager
def bar(label: str, total: int | None = None) -> Iterator[Update]:
    """A bar on standard error if that is a terminal, else a line at the start and at the end, and one every `EVERY` seconds."""
    label = escaped(label)
    if not is_first():
        yield lambda advance=1, total=None, note="": None
        return
    if sys.stderr.isatty():
        note = drawing.TextColumn("{task.fields[note]}", markup=False)
        columns = (
            drawing.TextColumn("{task.description}", markup=False),
            drawing.BarColumn(),
            Steps(),
            drawing.TimeRemainingColumn(),
            note,
        )
        with drawing.Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
            task = drawn.add_task(label, total=total, note="")

            def update(advance: int = 1, total: int | None = None, note: str = "") -> None:
                drawn.update(
                    task, advance=advance, note=escaped(note), total=drawn.tasks[0].total if total is None else total
                )

            yield update
        return
    began, ended = time.monotonic(), threading.Event()
    click.echo(f"{label} ...", err=True)
    lines = Lines(label, total, began)
    beating = threading.Thread(target=lines.until, args=(ended,), daemon=True)
    beating.start()
    try:
        yield lines
    finally:
        ended.set()
        beating.join()
    click.echo(f"{label}: {time.monotonic() - began:.1f} s", err=True)


class Lines:
    """Progress in a pipe: now and then a line with how much is done and about how long the rest takes, by the median of the last steps: in
    the first ones programs are compiled."""

    def __init__(self, label: str, total: int | None, began: float) -> None:
        self.label, self.total, self.began = label, total, began
        self.done, self.told, self.note = 0, began, ""
        self.last, self.steps = began, collections.deque[float](maxlen=200)

    def __call__(self, advance: int = 1, total: int | None = None, note: str = "") -> None:
        """Steps on; a line if the last is long ago."""
        self.done, self.total, self.note = self.done + advance, self.total if total is None else total, note
        if advance > 0:
            now = time.monotonic()
            self.steps.append((now - self.last) / advance)
            self.last = now
        self.show()

    def show(self) -> None:
        """A line if the last is long ago."""
        now = time.monotonic()
        if now - self.told < EVERY:
            return
        self.told, how_far = now, f"{now - self.began:.0f} s so far"
        if self.done:
            how_far = f"{self.done}" if self.total is None else f"{self.done} of {self.total}"
        if self.total is not None and len(self.steps) >= ENOUGH:
            step = statistics.median(self.steps)
            left = step * max(self.total - self.done - 1, 0) + max(step - (now - self.last), 0)
            how_far += f", about {left:.0f} s left"
        click.echo(f"{self.label}: {how_far}{f' ({escaped(self.note)})' if self.note else ''}", err=True)

    def until(self, ended: threading.Event) -> None:
        """Lines where no step comes for long, as while programs are compiled."""
        while not ended.wait(EVERY / 30):
            self.show()

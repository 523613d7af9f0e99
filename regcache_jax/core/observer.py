"""Who hears how a pipeline gets on."""

from __future__ import annotations


class Observer:
    """Hears what the pipeline does; the command line's draws bars. This one says nothing."""

    def started(self, stage: str) -> None:
        """A stage begins."""

    def skipped(self, stage: str) -> None:
        """A stage's result is there already."""

    def moved(self, done: int, total: int | None = None, note: str = "") -> None:
        """A stage has come to step `done` of `total`."""

    def said(self, text: str) -> None:
        """A line for the reader."""

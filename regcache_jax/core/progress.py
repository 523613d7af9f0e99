"""How a long call says how far it is: one protocol for Python, the command line and the pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

Row = TypeVar("Row")


@runtime_checkable
class Progress(Protocol):
    """Hears how a call gets on. Any function will do; `rc.progress` makes one that shows it."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """After a step: how many are done, of how many at most (None: nobody knows), and a short note."""


class Heard(Sequence[Row]):
    """Rows that tell, as they are gone through, how many pictures have passed; on from where an earlier pass ended."""

    def __init__(self, rows: Iterable[Row], progress: Progress, total: int | None) -> None:
        self.rows, self.progress, self.total, self.done = rows, progress, total, 0

    def __iter__(self) -> Iterator[Row]:
        for row in self.rows:
            yield row
            self.done += len(row)  # type: ignore[arg-type]
            self.progress(self.done, self.total)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.rows[index]  # type: ignore[index]

    def __len__(self) -> int:
        return len(self.rows)  # type: ignore[arg-type]

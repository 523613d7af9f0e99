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


def heard(rows: Iterable[Row], progress: Progress, total: int | None) -> Iterable[Row]:
    """Rows of pictures that tell, as they are gone through, how many pictures have passed; kept rows go on where an earlier pass ended."""
    if isinstance(rows, Sequence):
        return Heard(rows, progress, total)
    empty: Sequence[Row] = ()
    return Heard(empty, progress, total).passing(rows)


def in_parts(rows: Sequence[Row], parts: int, part: str) -> Iterator[int]:
    """0 .. parts - 1, for one pass over rows that is made part by part (a block each, say): who hears of the rows hears of every part as
    of its share of them."""
    return rows.in_parts(parts, part) if isinstance(rows, Heard) else iter(range(parts))


class Heard(Sequence[Row]):
    """Kept rows, heard at every pass; a pass more than there should be is counted as well."""

    def __init__(self, rows: Sequence[Row], progress: Progress, total: int | None) -> None:
        self.rows, self.progress, self.total, self.done = rows, progress, total, 0

    def passing(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Some rows, one by one."""
        for row in rows:
            yield row
            self.done += len(row)  # type: ignore[arg-type]
            self.progress(self.done, None if self.total is None else max(self.done, self.total))

    def in_parts(self, parts: int, part: str) -> Iterator[int]:
        """The numbers of the parts of a pass."""
        began, pictures = self.done, sum(len(row) for row in self.rows)  # type: ignore[arg-type, misc]
        for number in range(parts):
            yield number
            self.done = began + pictures * (number + 1) // parts
            total = None if self.total is None else max(self.done, self.total)
            self.progress(self.done, total, f"{part} {number + 1} of {parts}")

    def __iter__(self) -> Iterator[Row]:
        return self.passing(self.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

"""How far a set is, whoever works on it: pictures done and left, by the receipts that are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from regcache_jax.data.parts import Part
from regcache_jax.embedding.layout import Layout
from regcache_jax.evaluation.watch import Watch

LOOK, SHOW = 10.0, 0.2
"""Seconds between two looks at what others have done, and between two moves of the display."""


class Tally:
    """Tells `moved(done, total, note)` of the pictures that were left when it began. Where shards do not say how much they hold, they are
    taken to hold as much as those that were opened."""

    def __init__(
        self, layout: Layout, parts: Sequence[Part], moved: Callable[[int, int, str], None], watch: Watch
    ) -> None:
        self._layout, self._moved, self._watch = layout, moved, watch
        self._counts = {number: part.pictures for number, part in enumerate(parts)}
        self._before = layout.done()
        self._done = set(self._before)
        self._began = self._looked = time.monotonic()
        self._shown = 0.0
        self._current: dict[int, int] = {}
        self.pictures = self.unreadable = 0
        self._measure()

    def opened(self, number: int, count: int) -> None:
        """A partition of this process, and how many pictures it holds."""
        self._counts[number], self._current[number] = count, 0
        self._measure()

    def finished(self, number: int, unreadable: int) -> None:
        """This process has written a partition."""
        self._done.add(number)
        self._current.pop(number)
        self._measure()
        self.unreadable += unreadable
        self.show()

    def add(self, number: int, pictures: int) -> None:
        """So many pictures more of a partition."""
        self._current[number] += pictures
        self.pictures += pictures
        self.show()

    def show(self) -> None:
        """Tells where things stand."""
        now = time.monotonic()
        if now - self._shown < SHOW:
            return
        self._shown = now
        if now - self._looked > LOOK:
            self._looked, self._done = now, self._done | self._layout.done()
            self._measure()
        speed = self.pictures / max(now - self._began, 1e-3)
        waited = self._watch.waited / max(time.perf_counter() - self._watch.began, 1e-3)
        note = f"{speed:,.0f}/s here, waiting for pictures {waited:.0%}"
        if self.unreadable:
            note += f", {self.unreadable:,} unreadable"
        self._moved(self._written + sum(self._current.values()), self._total, note)

    def _measure(self) -> None:
        """Adds up how many pictures there are and how many are written: not at each move of the display, as there may be 100,000
        partitions."""
        known = [count for count in self._counts.values() if count is not None]
        usual = sum(known) / len(known) if known else 0.0

        def size(numbers: Iterable[int]) -> int:
            return round(sum(usual if (count := self._counts[number]) is None else count for number in numbers))

        self._written = size(self._done - self._before)
        self._total = size(self._counts.keys() - self._before)

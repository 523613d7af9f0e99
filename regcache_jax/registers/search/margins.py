"""How much a plan can lose before sinks are back: pictures that neither search nor calibration has seen may need more copies."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

from regcache_jax.registers.search.scores import Scores
from regcache_jax.registers.search.space import Numbers, Space

NEEDED = 0.2
"""The share of its copies that a plan must be able to lose."""
LESS, MORE = (0.1,), (0.35, 0.5)
"""Shares that are tried where it cannot, and where it can."""

QUIET = 1.5
"""Sinks are back where any scale grows to so many times the plan's own."""

STRONGER = 1.25
"""A plan that does not hold is tried again with so many times the copies, up to `STEPS` times."""
STEPS = 4


class Margins:
    """The copies that points of a search have to spare."""

    def __init__(self, scores: Scores, space: Space) -> None:
        self.scores, self.space = scores, space
        self.spare = functools.cache(self._find_spare)

    def weaker(self, numbers: Numbers, share: float) -> Numbers:
        """The point without a share of its copies, or of its deletions where it has no registers."""
        if numbers.stop > numbers.start:
            return dataclasses.replace(numbers, copies=numbers.copies * (1 - share))
        return dataclasses.replace(numbers, delete_count=int(numbers.delete_count * (1 - share)))

    def _find_spare(self, numbers: Numbers) -> float:
        """The share of its copies that a plan can lose before any scale, over all working images, grows by more than `QUIET`."""
        if numbers == self.space.nothing or not self.scores.trials.scheme.calibrated:
            return 1.0
        own, first, before = (
            self._scales(numbers),
            self.scores.trials.first_block(self.scores.padded(numbers)),
            self.scores.trials.block_flops,
        )

        def quiet(share: float) -> bool:
            there = self._scales(self.weaker(numbers, share))
            return max(float(np.max(there[site][first:] / own[site][first:])) for site in own) <= QUIET

        spare = NEEDED if quiet(NEEDED) else 0.0
        for share in MORE if spare else LESS:
            if not quiet(share):
                break
            spare = share
        self.scores.checking_flops += self.scores.trials.block_flops - before
        return spare

    def _scales(self, numbers: Numbers) -> dict[str, np.ndarray]:
        ranges = self.scores.trials.ranges(self.scores.padded(numbers))
        return {site: np.asarray(scale) for site, scale in ranges.scales(self.scores.trials.scheme).items()}

    def holds(self, numbers: Numbers) -> bool:
        """Whether a plan has copies to spare."""
        return self.spare(numbers) >= NEEDED

    def strengthened(self, numbers: Numbers) -> Iterable[Numbers]:
        """A point, and while it does not hold the same with more copies (or deletions, where it has no registers)."""
        for _ in range(STEPS + 1):
            yield numbers
            if self.holds(numbers):
                return
            if numbers.stop > numbers.start:
                numbers = dataclasses.replace(numbers, copies=float(f"{numbers.copies * STRONGER:.3g}"))
            else:
                more = [count for count in self.space.delete_counts if count > numbers.delete_count]
                if not more:
                    return
                numbers = dataclasses.replace(numbers, delete_count=more[0])

"""How much a plan can lose before sinks are back: pictures that neither search nor calibration has seen may need more copies."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

from regcache_jax.quantization.calibrate import Ranges
from regcache_jax.registers.search.scores import Scores
from regcache_jax.registers.search.space import Numbers, Space

NEEDED = 0.2
"""The share of its copies that a plan must be able to lose."""
SHARES = (0.5, 0.35, NEEDED, 0.1)
"""Shares that are tried, until the plan can lose one: a run that cannot ends at the first pictures that show it."""

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
        trials, own = self.scores.trials, self.scores.scales(numbers)[0]
        limits, before = {site: QUIET * scale for site, scale in own.items()}, trials.block_flops
        spare = next((share for share in SHARES if self._is_quiet(self.weaker(numbers, share), limits)), 0.0)
        self.scores.checking_flops += trials.block_flops - before
        return spare

    def _is_quiet(self, numbers: Numbers, limits: Ranges) -> bool:
        return not self.scores.trials.exceeds(self.scores.padded(numbers), limits)

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

"""What points of a search are worth: their errors under each draw, from trials or from the table, within a budget."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.files.trial_table import TrialTable
from regcache_jax.quantization.calibrate import Ranges
from regcache_jax.registers.search.space import Numbers
from regcache_jax.registers.search.trial import Trials

DIGITS = 4
"""Significant digits of an error that decide; the rest is the order of additions, which devices and batch sizes change."""

SPREADS = 1.0
"""A trial's bound is the mean error over the draws plus so many of their standard deviations."""


class OverBudget(Exception):
    """A budget has run out; the search answers with the best so far."""


def rounded(number: float) -> float:
    """The digits that decide."""
    return float(f"{number:.{DIGITS}g}")


def bound(drawn: Sequence[float]) -> float:
    """What a trial is worth: the mean over the draws and `SPREADS` of their standard deviations."""
    return rounded(float(np.mean(drawn)) + SPREADS * deviation(drawn))


def deviation(drawn: Sequence[float] | np.ndarray) -> float:
    """The standard deviation over the draws; of a single one, nothing."""
    return float(np.std(drawn, ddof=1)) if len(drawn) > 1 else 0.0


def tied(drawn: Sequence[float], leading: Sequence[float]) -> bool:
    """Whether the draws cannot tell a point from a leader: it is behind by no more than the difference deviates, and its bound stands
    within one more of the leader's deviations. Without the second a point whose own draws differ widely would tie with any."""
    behind = np.subtract(drawn, leading)
    return bool(behind.mean() <= deviation(behind)) and bound(drawn) <= bound(leading) + deviation(leading)


class Scores:
    """The errors of points over the draws of a search's trials. `announce` is told the best bound after each; budgets of time run from
    `began`."""

    def __init__(
        self,
        trials: Trials,
        table: TrialTable,
        config: SearchConfig,
        padded: Callable[[Numbers], RegisterPlan],
        announce: Callable[[float], None],
        began: float,
    ) -> None:
        self.trials, self.table, self.config, self.padded = trials, table, config, padded
        self.announce, self.began = announce, began
        self.preparation_flops = trials.block_flops
        self.checking_flops, self.best_bound, self.within_budget = 0, float("inf"), True
        self.whole: dict[tuple[Numbers, int], Sequence[float]] = {}
        self.scales = functools.cache(self._find_scales)

    @property
    def total(self) -> int:
        """All working images."""
        return self.trials.num_images

    @property
    def block_flops(self) -> int:
        """Operations of all blocks, with those of the trials that an earlier run left in the table."""
        return self.preparation_flops + self.checking_flops + sum(row["block_flops"] for row in self.table.rows)

    def _find_scales(self, numbers: Numbers) -> list[Ranges]:
        """A point's scales from all working images, then those of every draw. They are counted with the trial that first needs them, so
        that a search that goes on counts the same."""
        return self.trials.calibrated(self.padded(numbers))

    def drawn(self, numbers: Numbers, num_images: int, limit: float = float("inf")) -> Sequence[float] | None:
        """The errors of one point under each draw, on the first images; from the table where it stands there.

        None where the first draws show that the mean is beyond `limit`: the trial is given up. Raises OverBudget."""
        known = self.table.find(numbers, num_images)
        if known is None or (len(known) < self.trials.draws.count and sum(known) / self.trials.draws.count <= limit):
            self._check_budget()
            before, known = self.trials.block_flops, []
            scales = self.scales(numbers)[1:] if num_images == self.total else None
            for errors in self.trials.drawn_errors(self.padded(numbers), num_images, scales):
                known.append(rounded(float(errors.mean())))
                if sum(known) / self.trials.draws.count > limit:
                    break
            whole = len(known) == self.trials.draws.count
            error = bound(known) if whole else rounded(sum(known) / self.trials.draws.count)
            self.table.add(numbers, num_images, error, known, self.trials.block_flops - before)
        whole = len(known) == self.trials.draws.count
        if whole:
            self.whole[numbers, num_images] = known
        if num_images == self.total and whole:
            self.best_bound = min(self.best_bound, bound(known))
        self.announce(self.best_bound)
        return known if whole else None

    def score(self, numbers: Numbers, num_images: int, limit: float = float("inf")) -> float:
        """The bound of one point on the first images (infinite where its mean alone is beyond `limit`)."""
        drawn = self.drawn(numbers, num_images, limit)
        return float("inf") if drawn is None else bound(drawn)

    def _check_budget(self) -> None:
        config = self.config
        spent = (
            (config.max_trials, len(self.table.rows)),
            (config.max_minutes, (time.monotonic() - self.began) / 60),
            (config.max_block_flops, self.block_flops),
        )
        if (
            self.within_budget
            and self.table.rows
            and any(limit is not None and value >= limit for limit, value in spent)
        ):
            raise OverBudget

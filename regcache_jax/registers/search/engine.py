"""The way of one search: halving a wide, coarse grid, moving the best point, and choosing among all that were scored on everything."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from regcache_jax.core.outputs import Answers
from regcache_jax.core.plan import RegisterPlan, make_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.trial_table import TrialTable
from regcache_jax.registers.candidates import Registers, find_candidates, registers_from, token_form
from regcache_jax.registers.inspect import inspect
from regcache_jax.registers.search.margins import STEPS, Margins
from regcache_jax.registers.search.parts import make_draws
from regcache_jax.registers.search.scores import OverBudget, Scores, bound, deviation, rounded
from regcache_jax.registers.search.space import Numbers, Space
from regcache_jax.registers.search.trial import Trials

Progress = Callable[[int, int, float], None]
"""Called after a trial with its number, how many are planned at most, and the best bound so far on all working images."""

INSPECTED = 64
"""Working images, at most, that tell where sinks begin."""


class Search:
    """One search over working images: candidates, trials, and the table that remembers them."""

    def __init__(
        self,
        encoder: Encoder,
        images: Float[np.ndarray, "n Y X 3"],
        scheme: Scheme,
        config: SearchConfig,
        *,
        table: TrialTable | None = None,
        answers: Answers | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.encoder, self.config, self.progress, began = encoder, config, progress, time.monotonic()
        l_q = config.sensitive_block
        profile_passes = 1 if l_q is None else 0
        if l_q is None:
            l_q = inspect(encoder, images[:INSPECTED], batch_size=config.chunk).sensitive_block
        self.space = Space(config, encoder.spec.image, l_q)
        self.candidates = find_candidates(
            encoder, images, self.space.starts,
            count=min(config.candidates, len(images)), class_token=config.class_token, position=config.position,
            batch_size=config.chunk,
        )  # fmt: skip
        self.trials = Trials(
            encoder, images, scheme, self.space.entries,
            make_draws(len(images), count=config.draws, first_share=config.first_share), config.chunk,
            objective=config.objective, answers=answers, memory_limit=config.memory_limit,
        )  # fmt: skip
        self.trials.count(passes=1)
        self.trials.count(passes=profile_passes, num_images=min(INSPECTED, len(images)))
        self._registers = functools.cache(self._make_registers)
        self.scores = Scores(self.trials, table or TrialTable(None, ""), config, self.padded, self._announce, began)
        self.margins = Margins(self.scores, self.space)

    @property
    def rungs(self) -> list[int]:
        """Images that each rung of the halving takes."""
        return self.space.rungs(self.trials.draws.first_rung(self.trials.num_images), self.trials.num_images)

    def _make_registers(self, target: int, num_registers: int) -> Registers:
        """The registers of one start in the form that the configuration names."""
        registers = registers_from(self.candidates, target, num_registers)
        if self.config.form == "token":
            return token_form(registers, self.encoder, self.space.starts[target])
        return registers

    def plan(self, numbers: Numbers) -> RegisterPlan:
        """The plan of one point; each of several registers weighs its share of the copies."""
        target = self.space.starts.index(min(max(numbers.start, self.space.starts[0]), self.space.starts[-1]))
        key, value, _, share = self._registers(target, numbers.num_registers)
        shape = (self.space.num_blocks, key.shape[2], len(share))
        copies = numbers.copies if len(share) == 1 else jnp.broadcast_to(numbers.copies * share, shape)
        return make_plan(
            key, value,
            copies=copies, start=numbers.start, stop=numbers.stop,
            delete_block=numbers.delete_block, delete_count=numbers.delete_count,
            num_patches=self.encoder.spec.image.grid**2,
        )  # fmt: skip

    def padded(self, numbers: Numbers) -> RegisterPlan:
        """The plan of one point in the one shape that all trials share: missing registers are rows that nobody sees."""
        plan = self.plan(numbers)
        missing = max(self.config.registers) - plan.key.shape[1]
        heads = (plan.num_blocks, plan.key.shape[2])
        copies = jnp.broadcast_to(
            plan.copies[..., None] if plan.copies.ndim == 0 else plan.copies, (*heads, plan.key.shape[1])
        )
        rows = ((0, 0), (0, missing), (0, 0), (0, 0))
        return plan.replace(
            key=jnp.pad(plan.key, rows),
            value=jnp.pad(plan.value, rows),
            copies=jnp.pad(copies.astype(jnp.float32), ((0, 0), (0, 0), (0, missing))),  # log 0 = -inf hides a row
        )

    def _announce(self, best_bound: float) -> None:
        if self.progress is not None:
            self.progress(len(self.scores.table.rows), self.planned, best_bound)

    @property
    def planned(self) -> int:
        """How many trials there will be at most."""
        width, total = len(self.space.grid()), 1
        for _ in self.rungs:
            total += width
            width = self.space.kept(width)
        return total + self.config.rounds * (14 + STEPS)

    def choose(self) -> Numbers:
        """The best of all points that all working images have scored.

        The leader has the least bound among those that hold (among all that are better than nothing, where none does). Of those that
        it does not beat by more than the deviation of the difference over the draws, the one with most copies to spare is chosen, then
        the cheapest."""
        scored = {point: drawn for (point, images), drawn in self.scores.whole.items() if images == self.scores.total}
        ranked = sorted(scored, key=lambda point: bound(scored[point]))
        better = ranked[: ranked.index(self.space.nothing)]
        if not better:
            return self.space.nothing
        leader = next((point for point in better if self.margins.holds(point)), better[0])

        def beaten(point: Numbers) -> bool:
            less = np.subtract(scored[point], scored[leader])
            return bool(less.mean() > deviation(less))

        tied = [point for point in better if not beaten(point)]

        def rank(point: Numbers) -> tuple[float, int, int, float]:
            rows = point.num_registers * (point.stop - point.start)
            return -self.margins.spare(point), rows, point.delete_count, bound(scored[point])

        return min(tied, key=rank)

    def run(self) -> tuple[Numbers, bool]:
        """The best point, and whether the search came to its end. Doing nothing is always scored first, and on all images."""
        self.scores.score(self.space.nothing, self.scores.total)
        try:
            return self._halve_and_move(), True
        except OverBudget:
            self.scores.within_budget = (
                False  # one trial more: the furthest point must be seen by all images to be the answer
            )
            tried = [(-images, bound(drawn), point) for (point, images), drawn in self.scores.whole.items()]
            points = [row for row in tried if row[2] != self.space.nothing]
            if points:
                self.scores.score(min(points, key=lambda row: row[:2])[2], self.scores.total)
            return self.choose(), False

    def _best(self, points: Iterable[Numbers], num_images: int, count: int) -> list[Numbers]:
        """The best of some points by the bound on the first images; those that cannot be among them are given up early."""
        bounds: dict[Numbers, float] = {}
        for point in points:
            limit = sorted(bounds.values())[count - 1] if len(bounds) >= count else float("inf")
            bounds[point] = self.scores.score(point, num_images, limit)
        return sorted(bounds, key=lambda point: bounds[point])[:count]

    def _halve_and_move(self) -> Numbers:
        points, rungs = self.space.grid(), self.rungs
        for images in rungs:
            points = self._best(points, images, self.space.kept(len(points)))
        for point in points:
            self._score_strengthened(point)
        best = self.choose()
        for _ in range(self.config.rounds):
            for promising in self._best(
                self.space.moves(best), rungs[min(1, len(rungs) - 1)], 1
            ):  # of nothing there is no move
                self._score_strengthened(promising)
            before, best = best, self.choose()
            if best == before:
                break
        return best

    def _score_strengthened(self, point: Numbers) -> None:
        for stronger in self.margins.strengthened(point):
            self.scores.score(stronger, self.scores.total)

    def gain(self, best: Numbers) -> tuple[float, float]:
        """The mean gain of a plan over none, and the standard error of that mean over the draws."""
        without, with_plan = (
            self.scores.drawn(self.space.nothing, self.scores.total),
            self.scores.drawn(best, self.scores.total),
        )
        assert without is not None and with_plan is not None
        gains = np.subtract(without, with_plan)
        return float(gains.mean()), rounded(deviation(gains) / len(gains) ** 0.5)

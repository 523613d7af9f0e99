"""The way of one search: halving a wide, coarse grid, moving the best point, and choosing among all that were scored on everything."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from regcache_jax.core.outputs import Answers
from regcache_jax.core.plan import RegisterPlan, make_plan
from regcache_jax.core.progress import Progress
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.trial_table import TrialTable
from regcache_jax.registers.candidates import Registers, Wanted, registers_from, token_form
from regcache_jax.registers.inspect import find_sensitive_block
from regcache_jax.registers.search.margins import STEPS, Margins
from regcache_jax.registers.search.parts import make_draws
from regcache_jax.registers.search.scores import OverBudget, Scores, bound, deviation, rounded, tied
from regcache_jax.registers.search.space import MOVES, Numbers, Space
from regcache_jax.registers.search.trial import Trials


class Search:
    """One search over working images: candidates, trials, and the table that remembers them.

    The images of the first rung tell where sinks begin; then one float run over all gives candidates, states and ranges."""

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
        draws = make_draws(len(images), count=config.draws, first_share=config.first_share)
        l_q, inspected = config.sensitive_block, draws.first_rung(len(images))
        if l_q is None:
            l_q = find_sensitive_block(encoder, images[:inspected], batch_size=config.chunk)
        self.space = Space(config, encoder.spec.image, l_q)
        wanted = Wanted(self.space.starts, min(config.candidates, len(images)), config.class_token, config.position)
        self.trials = Trials(
            encoder, images, scheme, self.space.entries, draws, config.chunk,
            objective=config.objective, answers=answers, memory_limit=config.memory_limit, wanted=wanted, progress=progress,
        )  # fmt: skip
        assert self.trials.candidates is not None
        self.candidates = self.trials.candidates
        if config.sensitive_block is None:
            self.trials.count(passes=1, num_images=inspected)
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
            num_patches=self.encoder.spec.image.num_patches,
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
            self.progress(len(self.scores.table.rows), self.planned, f"best error {best_bound:.3g}")

    @property
    def planned(self) -> int:
        """How many trials there will be at most."""
        width, total = len(self.space.grid()), 1
        for _ in self.rungs:
            total += width
            width = self.space.kept(width)
        return total + self.config.rounds * (MOVES + STEPS)

    def choose(self) -> Numbers:
        """The best of all points that all working images have scored.

        The leader has the least bound among those that hold (among all that are better than nothing, where none does). Of those that
        the draws cannot tell from it (`scores.tied`) the one with most copies to spare is chosen, then the cheapest."""
        scored = {point: drawn for (point, images), drawn in self.scores.whole.items() if images == self.scores.total}
        ranked = sorted(scored, key=lambda point: bound(scored[point]))
        better = ranked[: ranked.index(self.space.nothing)]
        if not better:
            return self.space.nothing
        leader = next((point for point in better if self.margins.holds(point)), better[0])
        equal = [point for point in better if tied(scored[point], scored[leader])]

        def rank(point: Numbers) -> tuple[float, int, int, float]:
            rows = point.num_registers * (point.stop - point.start)
            return -self.margins.spare(point), rows, point.delete_count, bound(scored[point])

        return min(equal, key=rank)

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
        """The best of some points by the bound on the first images; those that cannot be among them, or are worse than doing nothing,
        are given up early. Doing nothing is left if all are."""
        nothing = self.space.nothing
        bounds = {nothing: self.scores.score(nothing, num_images)}
        for point in points:
            limit = sorted(bounds.values())[:count][-1] if len(bounds) >= count else bounds[nothing]
            bounds[point] = self.scores.score(point, num_images, min(limit, bounds[nothing]))
        ranked = sorted(bounds, key=lambda point: bounds[point])
        return [point for point in ranked[:count] if bounds[point] <= bounds[nothing]]

    def _halve_and_move(self) -> Numbers:
        points, rungs = self.space.grid(), self.rungs
        for images in rungs:
            points = self._best(points, images, self.space.kept(len(points)))
        for point in points:
            self._score_strengthened(point)
        best = self.choose()
        for _ in range(self.config.rounds):
            (promising,) = self._best(self.space.moves(best), rungs[min(1, len(rungs) - 1)], 1)
            self._score_strengthened(promising)
            before, best = best, self.choose()
            if best == before or tied(self._scored(before), self._scored(best)):
                break
        return best

    def _scored(self, point: Numbers) -> Sequence[float]:
        """The errors of a point that all working images have scored."""
        return self.scores.whole[point, self.scores.total]

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

"""Search (paper, step 6): over start, stop, copies, delete block and delete count, label-free, by successive halving.

A wide, coarse grid is scored on a few images; the best go on to more, until all working images score the last ones; then one
number of the best plan is changed at a time. Every score is a bound over several draws of the calibration images. A plan must hold with
fewer copies than it has; of plans that differ by less than the draws do, the one that can lose most copies is taken, then the cheapest.
Every trial is written to a table as it ends; a search that is killed reads the table and goes on, and ends with the same plan.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import RegisterPlan, make_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.identity import Digest
from regcache_jax.files.trial_table import TrialTable
from regcache_jax.registers.candidates import Registers, find_candidates, registers_from, token_form
from regcache_jax.registers.inspect import inspect
from regcache_jax.registers.reference import check_images, check_varied
from regcache_jax.registers.search.claim import HeldOut, claim_of
from regcache_jax.registers.search.parts import make_draws, split
from regcache_jax.registers.search.result import SearchResult, judged_with
from regcache_jax.registers.search.space import Numbers, Space
from regcache_jax.registers.search.trial import Trials, compilations

Progress = Callable[[int, int, float], None]
"""Called after a trial with its number, how many are planned at most, and the best bound so far on all working images."""

DIGITS = 4
"""Significant digits of an error that decide; the rest is the order of additions, which devices and batch sizes change."""

SPREADS = 1.0
"""A trial's bound is the mean error over the draws plus so many of their standard deviations."""

INSPECTED = 64
"""Working images, at most, that tell where sinks begin."""

NEEDED = 0.2
"""The share of its copies that a plan must be able to lose."""
LESS, MORE = (0.1,), (0.35, 0.5)
"""Shares that are tried where it cannot, and where it can."""

QUIET = 1.5
"""Sinks are back where any scale grows to so many times the plan's own."""

STRONGER = 1.25
"""A plan that does not hold is tried again with so many times the copies, up to `STEPS` times."""
STEPS = 4


class OverBudget(Exception):
    """A budget has run out; the search answers with the best so far."""


def rounded(number: float) -> float:
    """The digits that decide."""
    return float(f"{number:.{DIGITS}g}")


def bound(drawn: Sequence[float]) -> float:
    """What a trial is worth: the mean over the draws and `SPREADS` of their standard deviations."""
    return rounded(float(np.mean(drawn)) + SPREADS * _deviation(drawn))


def _deviation(drawn: Sequence[float] | np.ndarray) -> float:
    return float(np.std(drawn, ddof=1)) if len(drawn) > 1 else 0.0


def fingerprint(
    encoder: Encoder, images: Float[np.ndarray, "n Y X 3"], scheme: Scheme, config: SearchConfig, *more: Any
) -> str:
    """Hash of all that the search's way depends on (budgets are left out: a search may go on with a larger one)."""
    arrays = jax.tree.leaves((encoder.params.image, images, more))
    return Digest().arrays(arrays).json([config.settings(), scheme.to_json(), encoder.spec.to_json()]).hex()


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
        labels: np.ndarray | None = None,
        class_vectors: np.ndarray | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.began, self.compiled_before = time.monotonic(), compilations()
        self.encoder, self.config, self.progress = encoder, config, progress
        self.table = table or TrialTable(None, "")
        l_q = config.sensitive_block
        profile_passes = 1 if l_q is None else 0
        if l_q is None:
            l_q = inspect(encoder, images[:INSPECTED], batch_size=config.chunk).sensitive_block
        self.space = Space(config, encoder.spec.image, l_q)
        self.candidates = find_candidates(
            encoder, images, self.space.starts,
            count=min(config.candidates, len(images)), class_token=config.class_token, batch_size=config.chunk,
        )  # fmt: skip
        self.draws = make_draws(len(images), count=config.draws, first_share=config.first_share)
        self.trials = Trials(
            encoder, images, scheme, self.space.entries,
            chunk=config.chunk, draws=self.draws,
            labels=labels, class_vectors=class_vectors, memory_limit=config.memory_limit,
        )  # fmt: skip
        self.trials.count(passes=1)
        self.trials.count(passes=profile_passes, num_images=min(INSPECTED, len(images)))
        self.preparation_flops = self.trials.block_flops
        self.checking_flops, self.best_bound, self.within_budget = 0, float("inf"), True
        self.whole: dict[tuple[Numbers, int], Sequence[float]] = {}
        self._registers = functools.cache(self._make_registers)
        self.spare = functools.cache(self._find_spare)

    @property
    def total(self) -> int:
        """All working images."""
        return self.trials.num_images

    @property
    def rungs(self) -> list[int]:
        """Images that each rung of the halving takes."""
        return self.space.rungs(self.draws.first_rung(self.total), self.total)

    @property
    def block_flops(self) -> int:
        """Operations of all blocks, with those of the trials that an earlier run left in the table."""
        return self.preparation_flops + self.checking_flops + sum(row["block_flops"] for row in self.table.rows)

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

    def drawn(self, numbers: Numbers, num_images: int, limit: float = float("inf")) -> Sequence[float] | None:
        """The errors of one point under each draw, on the first images; from the table where it stands there.

        None where the first draws show that the mean is beyond `limit`: the trial is given up. Raises OverBudget."""
        known = self.table.find(numbers, num_images)
        if known is None or (len(known) < self.draws.count and sum(known) / self.draws.count <= limit):
            self._check_budget()
            before, known = self.trials.block_flops, []
            for errors in self.trials.drawn_errors(self.padded(numbers), num_images):
                known.append(rounded(float(errors.mean())))
                if sum(known) / self.draws.count > limit:
                    break
            whole = len(known) == self.draws.count
            error = bound(known) if whole else rounded(sum(known) / self.draws.count)
            self.table.add(numbers, num_images, error, known, self.trials.block_flops - before)
        whole = len(known) == self.draws.count
        if whole:
            self.whole[numbers, num_images] = known
        if num_images == self.total and whole:
            self.best_bound = min(self.best_bound, bound(known))
        if self.progress is not None:
            self.progress(len(self.table.rows), self.planned, self.best_bound)
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

    @property
    def planned(self) -> int:
        """How many trials there will be at most."""
        width, total = len(self.space.grid()), 1
        for _ in self.rungs:
            total += width
            width = self.space.kept(width)
        return total + self.config.rounds * (14 + STEPS)

    def weaker(self, numbers: Numbers, share: float) -> Numbers:
        """The point without a share of its copies, or of its deletions where it has no registers."""
        if numbers.stop > numbers.start:
            return dataclasses.replace(numbers, copies=numbers.copies * (1 - share))
        return dataclasses.replace(numbers, delete_count=int(numbers.delete_count * (1 - share)))

    def _find_spare(self, numbers: Numbers) -> float:
        """The share of its copies that a plan can lose before any scale, over all working images, grows by more than `QUIET`."""
        if numbers == self.space.nothing or not self.trials.scheme.calibrated:
            return 1.0
        own, first, before = (
            self._scales(numbers),
            self.trials.first_block(self.padded(numbers)),
            self.trials.block_flops,
        )

        def quiet(share: float) -> bool:
            there = self._scales(self.weaker(numbers, share))
            return max(float(np.max(there[site][first:] / own[site][first:])) for site in own) <= QUIET

        spare = NEEDED if quiet(NEEDED) else 0.0
        for share in MORE if spare else LESS:
            if not quiet(share):
                break
            spare = share
        self.checking_flops += self.trials.block_flops - before
        return spare

    def _scales(self, numbers: Numbers) -> dict[str, np.ndarray]:
        ranges = self.trials.ranges(self.padded(numbers))
        return {site: np.asarray(scale) for site, scale in ranges.scales(self.trials.scheme).items()}

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

    def choose(self) -> Numbers:
        """The best of all points that all working images have scored.

        The leader has the least bound among those that hold (among all, where none does). Of those that it does not beat by more than the
        deviation of the difference over the draws, the one with most copies to spare is chosen, then the cheapest."""
        scored = {point: drawn for (point, images), drawn in self.whole.items() if images == self.total}
        ranked = sorted(scored, key=lambda point: bound(scored[point]))
        leader = next((point for point in ranked if self.holds(point)), ranked[0])
        if leader == self.space.nothing:
            return leader

        def beaten(point: Numbers) -> bool:
            less = np.subtract(scored[point], scored[leader])
            return bool(less.mean() > _deviation(less))

        near = [point for point in ranked if point != self.space.nothing and not beaten(point)]
        tied = [point for point in near if self.spare(point) >= self.spare(leader)]

        def rank(point: Numbers) -> tuple[float, int, int, float]:
            rows = point.num_registers * (point.stop - point.start)
            return -self.spare(point), rows, point.delete_count, bound(scored[point])

        return min(tied, key=rank)

    def run(self) -> tuple[Numbers, bool]:
        """The best point, and whether the search came to its end. Doing nothing is always scored first, and on all images."""
        self.score(self.space.nothing, self.total)
        try:
            return self._halve_and_move(), True
        except OverBudget:
            self.within_budget = False  # one trial more: the furthest point must be seen by all images to be the answer
            tried = [(-images, bound(drawn), point) for (point, images), drawn in self.whole.items()]
            points = [row for row in tried if row[2] != self.space.nothing]
            if points:
                self.score(min(points, key=lambda row: row[:2])[2], self.total)
            return self.choose(), False

    def _best(self, points: Iterable[Numbers], num_images: int, count: int) -> list[Numbers]:
        """The best of some points by the bound on the first images; those that cannot be among them are given up early."""
        bounds: dict[Numbers, float] = {}
        for point in points:
            limit = sorted(bounds.values())[count - 1] if len(bounds) >= count else float("inf")
            bounds[point] = self.score(point, num_images, limit)
        return sorted(bounds, key=lambda point: bounds[point])[:count]

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
            if best == before:
                break
        return best

    def _score_strengthened(self, point: Numbers) -> None:
        for stronger in self.strengthened(point):
            self.score(stronger, self.total)

    def gain(self, best: Numbers) -> tuple[float, float]:
        """The mean gain of a plan over none, and the standard error of that mean over the draws."""
        without, with_plan = self.drawn(self.space.nothing, self.total), self.drawn(best, self.total)
        assert without is not None and with_plan is not None
        gains = np.subtract(without, with_plan)
        return float(gains.mean()), rounded(_deviation(gains) / len(gains) ** 0.5)


def search(
    encoder: Encoder,
    images: Float[np.ndarray, "n Y X 3"],
    scheme: Scheme,
    config: SearchConfig | None = None,
    *,
    table: epath.PathLike | None = None,
    labels: np.ndarray | None = None,
    class_vectors: np.ndarray | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Finds a register plan for a float encoder and a scheme on preprocessed reference images, without labels.

    The images are split (`SearchConfig.verify_share`, `seed`): most are worked with, each draw taking scales from some and scoring
    others, and the rest verify the plan that comes out. Trials round to the nearest with the scheme's bits, sharing of scales and
    estimator of ranges; what else it says (method, zero points, rules, integer attention) comes in when `quantize` is given the plan.

    `table`: a JSONL file that remembers trials; with it, a killed search goes on where it stopped. Raises UserError for a
    set that is empty, of another shape, not finite, or all alike, for an encoder that is quantised already or whose features are
    not finite, and for a table that belongs to another search.

    >>> import jax.numpy as jnp, regcache_jax as rc
    >>> encoder, images, *truth = rc.plant(["patch sinks"])
    >>> result = rc.search(encoder, images, rc.Scheme(8, 8), rc.SearchConfig(max_trials=20))
    >>> result.helps, result.gain > 0.5
    (True, True)
    >>> int8 = rc.quantize(encoder, jnp.asarray(images), rc.Scheme(8, 8), result.plan)
    """
    config = config or SearchConfig()
    if encoder.scheme is not None:
        raise UserError(
            f"{encoder.spec.name} is quantised already ({encoder.scheme.name}); search needs the float encoder"
        )
    images = np.asarray(images)
    check_images(images, encoder.spec)
    check_varied(images)
    if (config.objective == "accuracy") != (labels is not None and class_vectors is not None):
        raise UserError("objective 'accuracy' goes with labels and class vectors, 'features' without")
    if labels is not None and len(labels) != len(images):
        raise UserError(f"there must be a label for each image, got {len(labels)} for {len(images)} images")
    scheme, encoder = scheme.nearest(), encoder.with_plan(None)
    parts = split(len(images), config.verify_share, config.seed)
    own, others = (None if labels is None else labels[numbers] for numbers in (parts.working, parts.verifying))
    known_by = fingerprint(encoder, images, scheme, config, labels, class_vectors)
    engine = Search(
        encoder, images[parts.working], scheme, config,
        table=TrialTable(table, known_by), labels=own, class_vectors=class_vectors,
        progress=progress,
    )  # fmt: skip
    best, complete = engine.run()
    nothing, before = engine.space.nothing, engine.trials.block_flops
    held_out = HeldOut(engine.trials, images[parts.verifying], engine.padded(nothing), others)
    gained, jitter = engine.gain(best)
    without = held_out.errors(engine.padded(nothing))
    with_plan = held_out.errors(engine.padded(best)) if best != nothing else without
    less = without[0] - with_plan[0]
    helps = gained > 2.0 * jitter and bool(less.mean() > 2.0 * np.std(less) / len(less) ** 0.5)
    best = best if helps else nothing
    return SearchResult(
        plan=engine.plan(best),
        numbers=best,
        helps=helps,
        claim=claim_of(with_plan if helps else without),
        baseline=claim_of(without),
        bound=engine.score(best, engine.total),
        jitter=jitter,
        spare=engine.spare(best),
        moved=held_out.moved(engine.padded(best)) if helps else 0.0,
        sensitive_block=engine.space.sensitive_block,
        parts=parts,
        calibration=judged_with(parts, images, scheme, config),
        trials=engine.table.rows,
        block_flops=engine.block_flops + engine.trials.block_flops - before,
        seconds=time.monotonic() - engine.began,
        compilations=compilations() - engine.compiled_before,
        complete=complete,
    )

"""Search (paper, step 6): over start, stop, copies, delete block and delete count, label-free, by successive halving.

A wide, coarse grid is scored on a few images; the best go on to more, until the whole reference set scores the last
ones; then one number of the best plan is changed at a time. Every trial is written to a table as it ends; a search that is
killed reads the table and goes on, and ends with the same plan.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
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
from regcache_jax.encoders.identity import encoder_hash
from regcache_jax.files.identity import Digest
from regcache_jax.files.trial_table import TrialTable
from regcache_jax.registers.candidates import Registers, find_candidates, registers_from, token_form
from regcache_jax.registers.inspect import inspect
from regcache_jax.registers.reference import check_images, check_varied
from regcache_jax.registers.search.space import Numbers, Space
from regcache_jax.registers.search.trial import Trials, compilations

Progress = Callable[[int, int, float], None]
"""Called after a trial with its number, how many are planned at most, and the best error so far on all images."""

DIGITS = 4
"""Significant digits of an error that decide; the rest is the order of additions, which devices and batch sizes change."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The plan (which may do nothing), what it was chosen on, and what the search cost.

    `jitter` is the standard deviation of the gain over no plan when only the calibration images are drawn again; a plan is
    kept only if it gains more than twice that. `complete` is False where a budget ended the search."""

    plan: RegisterPlan
    numbers: Numbers
    helps: bool
    error: float
    baseline_error: float
    jitter: float
    sensitive_block: int
    trials: list[dict[str, Any]]
    block_flops: int
    seconds: float
    compilations: int
    complete: bool

    @property
    def gain(self) -> float:
        """The part of the error without a plan that the plan takes away."""
        return 1.0 - self.error / self.baseline_error if self.baseline_error > 0 else 0.0

    def sentence(self) -> str:
        """The verdict in one line."""
        figures = f"error {self.baseline_error:.3g} -> {self.error:.3g} (calibration jitter {self.jitter:.2g})"
        ended = "" if self.complete else "; the budget ended the search early"
        if not self.helps:
            return f"registers gain nothing here: {figures}; use the scheme without a plan{ended}"
        return f"registers take away {self.gain:.1%} of the quantisation error: {figures}{ended}"

    def to_json(self) -> dict[str, Any]:
        """Everything but the plan's arrays and the trial table."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del named["plan"], named["trials"]
        return {
            **named,
            "numbers": dataclasses.asdict(self.numbers),
            "gain": self.gain,
            "sentence": self.sentence(),
        }


def describe_plan(
    result: SearchResult, encoder: Encoder, scheme: Scheme, config: SearchConfig, reference: Mapping[str, Any]
) -> dict[str, Any]:
    """The metadata of a plan's file: encoder and its hash, reference set, scheme, objective, versions, and the search's figures.

    `reference` says which pictures they were (JSON values). Nothing in it depends on the clock or on a kill, so a search that
    went on writes the same bytes."""
    figures = {name: value for name, value in result.to_json().items() if name not in ("seconds", "compilations")}
    return {
        "encoder": encoder.spec.name,
        "encoder_hash": encoder_hash(encoder),
        "reference": dict(reference),
        "scheme": scheme.to_json(),
        "objective": config.objective,
        "search": config.settings(),
        "versions": {name: version(name) for name in ("regcache-jax", "jax", "aqtp", "numpy")},
        **figures,
    }


class OverBudget(Exception):
    """A budget has run out; the search answers with the best so far."""


def fingerprint(
    encoder: Encoder, images: Float[np.ndarray, "n Y X 3"], scheme: Scheme, config: SearchConfig, *more: Any
) -> str:
    """Hash of all that the search's way depends on (budgets are left out: a search may go on with a larger one)."""
    arrays = jax.tree.leaves((encoder.params["image"], images, more))
    return Digest().arrays(arrays).json([config.settings(), scheme.to_json(), encoder.spec.to_json()]).hex()


class Search:
    """One search: candidates, trials, and the table that remembers them."""

    def __init__(
        self,
        encoder: Encoder,
        images: Float[np.ndarray, "n Y X 3"],
        scheme: Scheme,
        config: SearchConfig,
        *,
        table: epath.PathLike | None = None,
        labels: np.ndarray | None = None,
        class_vectors: np.ndarray | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.began, self.compiled_before = time.monotonic(), compilations()
        self.encoder, self.config, self.progress = encoder, config, progress
        self.table = TrialTable(table, fingerprint(encoder, images, scheme, config, labels, class_vectors))
        l_q = config.sensitive_block
        profile_passes = 1 if l_q is None else 0
        if l_q is None:
            l_q = inspect(encoder, images, batch_size=config.chunk).sensitive_block
        self.space = Space(config, encoder.spec.image, l_q)
        self.candidates = find_candidates(
            encoder, images, self.space.starts,
            count=min(config.candidates, len(images)), class_token=config.class_token, batch_size=config.chunk,
        )  # fmt: skip
        self.trials = Trials(
            encoder, images, scheme, self.space.entries,
            chunk=config.chunk, labels=labels, class_vectors=class_vectors, memory_limit=config.memory_limit,
        )  # fmt: skip
        self.trials.count(passes=1 + profile_passes)
        self.preparation_flops = self.trials.block_flops
        self.best_error, self.within_budget = float("inf"), True
        self._registers = functools.cache(self._make_registers)

    @property
    def block_flops(self) -> int:
        """Operations of all blocks, with those of the trials that an earlier run left in the table."""
        return self.preparation_flops + sum(row["block_flops"] for row in self.table.rows)

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

    def score(self, numbers: Numbers, num_chunks: int) -> float:
        """Mean error of one point on the first chunks, from the table where it stands there. Raises OverBudget."""
        known = self.table.find(numbers, num_chunks)
        if known is None:
            self._check_budget()
            before = self.trials.block_flops
            known = float(f"{self.trials.errors(self.padded(numbers), num_chunks).mean():.{DIGITS}g}")
            self.table.add(numbers, num_chunks, known, self.trials.block_flops - before)
        if num_chunks == self.trials.num_chunks:
            self.best_error = min(self.best_error, known)
        if self.progress is not None:
            self.progress(len(self.table.rows), self.planned, self.best_error)
        return known

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
        for _ in self.space.rungs(self.trials.num_chunks):
            total += width
            width = self.space.kept(width)
        return total + self.config.rounds * 14

    def run(self) -> tuple[Numbers, bool]:
        """The best point, and whether the search came to its end. Doing nothing is always scored first, and on all images."""
        total = self.trials.num_chunks
        self.score(self.space.nothing, total)
        try:
            return self._halve_and_move(total), True
        except OverBudget:
            self.within_budget = False  # one trial more: the furthest point must be seen by all images to be the answer
            tried = [(-row["chunks"], row["error"], Numbers(**row["numbers"])) for row in self.table.rows]
            points = [row for row in tried if row[2] != self.space.nothing]
            furthest = min(points, key=lambda row: row[:2])[2] if points else self.space.nothing
            return min(self.space.nothing, furthest, key=lambda point: self.score(point, total)), False

    def _halve_and_move(self, total: int) -> Numbers:
        points, rungs = self.space.grid(), self.space.rungs(total)
        for chunks in rungs:
            points = sorted(points, key=lambda point: self.score(point, chunks))[: self.space.kept(len(points))]
        best = min([self.space.nothing, *points], key=lambda point: self.score(point, total))
        for _ in range(self.config.rounds):
            part = rungs[max(0, len(rungs) - 2)]
            promising = min(self.space.moves(best), key=lambda point: self.score(point, part))
            if self.score(promising, total) >= self.score(best, total):
                break
            best = promising
        return best

    def jitter(self, best: Numbers) -> float:
        """Standard deviation, over redraws of half the calibration images, of the gain of a plan over none, measured on
        a part of the set."""
        rng = np.random.default_rng(self.config.seed)
        count, rungs = self.trials.base_ranges.num_units, self.space.rungs(self.trials.num_chunks)
        draws = [np.sort(rng.choice(count, max(1, count // 2), replace=False)) for _ in range(self.config.redraws)]
        errors = [
            self.trials.redrawn_errors(self.padded(numbers), draws, rungs[0]) for numbers in (self.space.nothing, best)
        ]
        return float(f"{np.std(errors[0] - errors[1]):.{DIGITS}g}")


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

    Trials round to the nearest with the scheme's bits, sharing of scales and estimator of ranges; what else it says (method, zero
    points, rules, integer attention) comes in when `quantize` is given the plan.

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
    engine = Search(
        encoder.with_plan(None), images, scheme.nearest(), config,
        table=table, labels=labels, class_vectors=class_vectors, progress=progress,
    )  # fmt: skip
    best, complete = engine.run()
    total, nothing = engine.trials.num_chunks, engine.space.nothing
    error, baseline = engine.score(best, total), engine.score(nothing, total)
    before = engine.trials.block_flops
    jitter = engine.jitter(best) if best != nothing else 0.0
    helps = best != nothing and baseline - error > 2.0 * jitter
    return SearchResult(
        plan=engine.plan(best if helps else nothing),
        numbers=best if helps else nothing,
        helps=helps,
        error=error if helps else baseline,
        baseline_error=baseline,
        jitter=jitter,
        sensitive_block=engine.space.sensitive_block,
        trials=engine.table.rows,
        block_flops=engine.block_flops + engine.trials.block_flops - before,
        seconds=time.monotonic() - engine.began,
        compilations=compilations() - engine.compiled_before,
        complete=complete,
    )

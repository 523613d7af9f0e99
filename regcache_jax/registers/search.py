"""Search (paper, step 6): over start, stop, copies, delete block and delete count, label-free, by successive halving.

A wide, coarse grid is scored on a few images; the best go on to more, until the whole reference set scores the last
ones; then one number of the best plan is changed at a time. Every trial is written to a table as it ends; a search that is killed
reads the table and goes on, and ends with the same plan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float

from regcache_jax.encoders.encoder import Encoder
from regcache_jax.errors import UserError
from regcache_jax.quantization.scheme import Scheme
from regcache_jax.registers.candidates import CANDIDATES, Candidates, find_candidates, registers_from
from regcache_jax.registers.inspect import inspect
from regcache_jax.registers.plan import RegisterPlan, make_plan
from regcache_jax.registers.table import TrialTable
from regcache_jax.registers.trial import Trials, compilations

Progress = Callable[[int, int, float], None]
"""Called after a trial with its number, how many are planned at most, and the best error so far on all images."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """One point of the search. `start == stop` sees no register; `delete_count == 0` deletes nothing."""

    start: int
    stop: int
    copies: float
    delete_block: int
    delete_count: int
    num_registers: int = 1


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """What is searched, and how long. The paper's ranges are start in max(0, l_q - 3)..l_q, copies 1..15, count 0..10.

    `align`: delete so many tokens that the rest and one register fill whole tiles of this many rows (None: any count).
    `objective`: `features` needs no labels (default); `accuracy` needs labels and class vectors. `class_token`: the class
    token may be a candidate. `sensitive_block`: l_q where it is known. Budgets end the search early with the best plan so far."""

    copies: tuple[float, ...] = (1.0, 2.5, 6.0, 15.0)
    delete_counts: tuple[int, ...] = (0, 3, 8)
    back: int = 3
    registers: tuple[int, ...] = (1, 2)
    candidates: int = CANDIDATES
    class_token: bool = False
    align: int | None = None
    objective: Literal["features", "accuracy"] = "features"
    sensitive_block: int | None = None
    chunk: int = 32
    first_share: float = 0.125
    keep: float = 0.25
    rounds: int = 2
    redraws: int = 8
    seed: int = 0
    max_trials: int | None = None
    max_minutes: float | None = None
    max_block_flops: float | None = None


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The plan (which may do nothing), what it was chosen on, and what the search cost.

    `jitter` is the standard deviation of the gain over no plan when only the calibration images are drawn again; a plan is
    kept only if it gains more than twice that."""

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
        if not self.helps:
            return f"registers gain nothing here: {figures}; use the scheme without a plan"
        return f"registers take away {self.gain:.1%} of the quantisation error: {figures}"

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


class OverBudget(Exception):
    """A budget has run out; the search answers with the best so far."""


def reference_batches(images: Float[np.ndarray, "n Y X 3"], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of one shape with a mask; the last one is filled up with its last image."""
    size = min(size, len(images))
    for first in range(0, len(images), size):
        part = images[first : first + size]
        mask = np.arange(size) < len(part)
        yield np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)]), mask


def aligned_counts(counts: tuple[int, ...], num_tokens: int, align: int | None) -> tuple[int, ...]:
    """Delete counts that leave whole tiles (with one row for the register), the nearest to those asked for."""
    if align is None:
        return counts
    allowed = [count for count in range(max(counts) + align) if (num_tokens - count + 1) % align == 0]
    return tuple(dict.fromkeys([0, *(min(allowed, key=lambda a: abs(a - count)) for count in counts)]))


def fingerprint(encoder: Encoder, images: Float[np.ndarray, "n Y X 3"], scheme: Scheme, config: SearchConfig) -> str:
    """Hash of all that a trial's error depends on (budgets are left out: a search may go on with a larger one)."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(encoder.params["image"]):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    digest.update(np.ascontiguousarray(images).tobytes())
    settings = {name: value for name, value in dataclasses.asdict(config).items() if not name.startswith("max_")}
    digest.update(json.dumps([settings, scheme.to_json(), encoder.spec.to_json()], sort_keys=True).encode())
    return digest.hexdigest()


class Search:
    """One search: candidates, trials, and the table that remembers them."""

    def __init__(
        self,
        encoder: Encoder,
        images: Float[np.ndarray, "n Y X 3"],
        scheme: Scheme,
        config: SearchConfig,
        table: epath.PathLike | None,
        labels: np.ndarray | None,
        class_vectors: np.ndarray | None,
        progress: Progress | None,
    ) -> None:
        self.encoder, self.config, self.progress = encoder, config, progress
        self.began = time.monotonic()
        blocks = encoder.spec.image.blocks
        self.num_blocks = blocks.num_blocks
        batches = list(reference_batches(images, config.chunk))
        l_q = config.sensitive_block
        self.sensitive_block = inspect(encoder, batches).sensitive_block if l_q is None else l_q
        if not 0 <= self.sensitive_block < self.num_blocks:
            raise UserError(
                f"sensitive_block must be 0..{self.num_blocks - 1}, got {self.sensitive_block}; `regcache inspect` suggests one"
            )
        self.starts = list(range(max(0, self.sensitive_block - config.back), self.sensitive_block + 1))
        self.candidates: Candidates = find_candidates(
            encoder, batches, self.starts, count=config.candidates, class_token=config.class_token
        )
        self.compiled_before = compilations()
        entries = (*self.starts, min(self.sensitive_block + 1, self.num_blocks - 1))
        self.trials = Trials(
            encoder, images, scheme, entries, chunk=config.chunk, labels=labels, class_vectors=class_vectors
        )
        self.table = TrialTable(table, fingerprint(encoder, images, scheme, config))
        self.best_error = float("inf")

    def plan(self, numbers: Numbers, max_registers: int | None = None) -> RegisterPlan:
        """The plan of one point, each register weighing its share of the copies; filled up to `max_registers` rows that
        nobody sees, so that plans of any R run in one program."""
        target = min(max(numbers.start - self.starts[0], 0), len(self.starts) - 1)
        key, value, share = registers_from(self.candidates, target, numbers.num_registers, max(self.config.registers))
        plan = make_plan(
            key, value,
            start=numbers.start, stop=numbers.stop,
            delete_block=numbers.delete_block, delete_count=numbers.delete_count,
            num_patches=self.encoder.spec.image.grid**2,
        )  # fmt: skip
        heads = (self.num_blocks, self.encoder.spec.image.blocks.num_heads)
        return plan.replace(copies=jnp.broadcast_to(numbers.copies * share, (*heads, len(share))).astype(jnp.float32))

    def padded(self, numbers: Numbers) -> RegisterPlan:
        """The plan of one point in the shape that all trials share."""
        return self.plan(numbers, max(self.config.registers))

    def score(self, numbers: Numbers, num_chunks: int) -> float:
        """Mean error of one point on the first chunks, from the table where it stands there. Raises OverBudget."""
        known = self.table.find(numbers, num_chunks)
        if known is None:
            self._check_budget()
            before = self.trials.cost.block_flops
            known = float(np.mean(self.trials.errors(self.padded(numbers), num_chunks)))
            known = float(f"{known:.6g}")  # differences below this are the order of additions, and must not decide
            self.table.add(numbers, num_chunks, known, self.trials.cost.block_flops - before)
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
            (config.max_block_flops, self.trials.cost.block_flops),
        )
        if any(limit is not None and value >= limit for limit, value in spent):
            raise OverBudget

    def grid(self) -> list[Numbers]:
        """The coarse grid: registers from every start with every number of copies, every delete count, and both alone."""
        counts = aligned_counts(self.config.delete_counts, self.encoder.spec.image.num_tokens, self.config.align)
        counts = tuple(count for count in counts if count < self.encoder.spec.image.grid**2)
        l_q = self.sensitive_block
        points = [
            Numbers(start, self.num_blocks, copies, l_q, count)
            for start, copies, count in itertools.product(self.starts, self.config.copies, counts)
        ]
        return points + [Numbers(l_q, l_q, 1.0, l_q, count) for count in counts]

    def neighbours(self, best: Numbers) -> list[Numbers]:
        """Plans that differ from the best one in one number."""
        moves: list[dict[str, Any]] = []
        if best.stop > best.start:
            moves += [{"copies": best.copies * factor} for factor in (0.6, 0.8, 1.25, 1.6)]
            moves += [{"stop": stop} for stop in (self.num_blocks - 1, self.num_blocks - 2) if stop > best.start]
            moves += [{"num_registers": count} for count in self.config.registers]
        step = self.config.align or 1
        counts = (best.delete_count - step, best.delete_count + step)
        moves += [{"delete_count": count} for count in counts if 0 <= count < self.encoder.spec.image.grid**2]
        if best.delete_count:
            blocks = (best.delete_block - 1, best.delete_block + 1)
            moves += [{"delete_block": block} for block in blocks if self.starts[0] <= block <= self.trials.entries[-1]]
        points = [dataclasses.replace(best, **move) for move in moves]
        return [point for point in dict.fromkeys(points) if point != best]

    def rungs(self) -> list[int]:
        """Chunks per rung of the successive halving: from a share of the set to all of it."""
        total = self.trials.num_chunks
        rungs = [max(1, round(total * self.config.first_share))]
        while rungs[-1] < total:
            rungs.append(min(total, rungs[-1] * 3))
        return rungs

    @property
    def planned(self) -> int:
        """How many trials there will be at most."""
        width, total = len(self.grid()), 0
        for _ in self.rungs():
            total += width
            width = max(2, round(width * self.config.keep))
        return total + self.config.rounds * 11

    def nothing(self) -> Numbers:
        """The point without registers and deletion."""
        return Numbers(self.sensitive_block, self.sensitive_block, 1.0, self.sensitive_block, 0)

    def run(self) -> tuple[Numbers, bool]:
        """The best point, and whether the search came to its end."""
        total = self.trials.num_chunks
        best = self.nothing()
        self.score(best, total)
        try:
            points = self.grid()
            for chunks in self.rungs():
                scored = sorted(points, key=lambda point: self.score(point, chunks))
                points = scored[: max(2, round(len(points) * self.config.keep))]
                best = points[0]
            for _ in range(self.config.rounds):
                found = min([best, *self.neighbours(best)], key=lambda point: self.score(point, total))
                if found == best:
                    break
                best = found
        except OverBudget:
            finished = [(row["error"], Numbers(**row["numbers"])) for row in self.table.rows if row["chunks"] == total]
            return min(finished, key=lambda row: row[0])[1], False
        return best, True

    def jitter(self, best: Numbers) -> float:
        """Standard deviation, over redraws of half the calibration images, of the gain of the best plan over none."""
        rng = np.random.default_rng(self.config.seed)
        total = self.trials.num_chunks
        plans = self.padded(best), self.padded(self.nothing())
        gains = []
        for _ in range(self.config.redraws):
            drawn = sorted(rng.choice(total, size=max(1, total // 2), replace=False).tolist())
            with_plan, without = (float(np.mean(self.trials.errors(plan, calibration=drawn))) for plan in plans)
            gains.append(without - with_plan)
        return float(np.std(gains))


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

    `table`: a JSONL file that remembers trials; with it, a killed search goes on where it stopped. Raises UserError for an
    empty or non-finite set, an encoder that is quantised already, and a table that belongs to another search."""
    config = config or SearchConfig()
    if encoder.scheme is not None:
        raise UserError(
            f"{encoder.spec.name} is quantised already ({encoder.scheme.name}); search needs the float encoder"
        )
    if len(images) == 0:
        raise UserError("the reference set is empty; give at least one image")
    if not np.isfinite(images).all():
        raise UserError("the reference images hold NaN or infinity after preprocessing")
    if (config.objective == "accuracy") != (labels is not None and class_vectors is not None):
        raise UserError("objective 'accuracy' goes with labels and class vectors, 'features' without")
    began = time.monotonic()
    engine = Search(encoder.with_plan(None), images, scheme, config, table, labels, class_vectors, progress)
    best, complete = engine.run()
    total = engine.trials.num_chunks
    error, baseline = engine.score(best, total), engine.score(engine.nothing(), total)
    jitter = engine.jitter(best) if best != engine.nothing() else 0.0
    helps = best != engine.nothing() and baseline - error > 2.0 * jitter
    chosen = best if helps else engine.nothing()
    return SearchResult(
        plan=engine.plan(chosen),
        numbers=chosen,
        helps=helps,
        error=error if helps else baseline,
        baseline_error=baseline,
        jitter=jitter,
        sensitive_block=engine.sensitive_block,
        trials=engine.table.rows,
        block_flops=engine.trials.cost.block_flops,
        seconds=time.monotonic() - began,
        compilations=compilations() - engine.compiled_before,
        complete=complete,
    )

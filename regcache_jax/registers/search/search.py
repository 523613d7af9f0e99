"""Search (paper, step 6): over start, stop, copies, delete block and delete count, label-free, by successive halving.

A wide, coarse grid is scored on a few images; the best go on to more, until all working images score the last ones; then one
number of the best plan is changed at a time. Every score is a bound over several draws of the calibration images. A plan must hold with
fewer copies than it has; of plans that differ by less than the draws do, the one that can lose most copies is taken, then the cheapest.
Every trial is written to a table as it ends; a search that is killed reads the table and goes on, and ends with the same plan.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.objective import name_of
from regcache_jax.core.outputs import Answers
from regcache_jax.core.progress import Progress
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.identity import Digest
from regcache_jax.files.trial_table import TrialTable
from regcache_jax.registers.reference import check_images, check_varied
from regcache_jax.registers.search.claim import HeldOut, claim_of
from regcache_jax.registers.search.engine import Search
from regcache_jax.registers.search.parts import split
from regcache_jax.registers.search.programs import compilations
from regcache_jax.registers.search.result import SearchResult, judged_with


def fingerprint(
    encoder: Encoder, images: Float[np.ndarray, "n Y X 3"], scheme: Scheme, config: SearchConfig, *more: Any
) -> str:
    """Hash of all that the search's way depends on (budgets are left out: a search may go on with a larger one)."""
    arrays = jax.tree.leaves((encoder.params.image, images, more))
    settings = [config.settings(), scheme.to_json(), encoder.spec.to_json(), "parts in one run"]
    return Digest().arrays(arrays).json(settings).hex()


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

    `SearchConfig.objective` says what an error is: of the pooled feature, of the patch tokens, of both, of the answers (with `labels` and
    `class_vectors`), or what a function of (float outputs, quantised outputs), both `Outputs`, gives for each image.

    The images are split (`SearchConfig.verify_share`, `seed`): most are worked with, each draw taking scales from some and scoring
    others, and the rest verify the plan that comes out. Trials round to the nearest with the scheme's bits, sharing of scales and
    estimator of ranges; what else it says (method, zero points, rules, integer attention) comes in when `quantize` is given the plan.

    `progress` hears of every trial, and before the first of the pictures that are got ready.

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
        raise UserError("objective 'accuracy' goes with labels and class vectors, the others without")
    if labels is not None and len(labels) != len(images):
        raise UserError(f"there must be a label for each image, got {len(labels)} for {len(images)} images")
    scheme, encoder = scheme.nearest(), encoder.with_plan(None)
    parts = split(len(images), config.verify_share, config.seed)
    answers = None if labels is None or class_vectors is None else Answers(labels, class_vectors)
    own, others = (None if answers is None else answers.of(numbers) for numbers in (parts.working, parts.verifying))
    known_by = fingerprint(encoder, images, scheme, config, labels, class_vectors)
    began, compiled_before = time.monotonic(), compilations()
    engine = Search(
        encoder, images[parts.working], scheme, config,
        table=TrialTable(table, known_by), answers=own, progress=progress,
    )  # fmt: skip
    best, complete = engine.run()
    scores = engine.scores
    nothing, spare = engine.space.nothing, engine.margins.spare(best)
    before = engine.trials.block_flops
    held_out = HeldOut(engine.trials, images[parts.verifying], engine.padded(nothing), others)
    gained, jitter = engine.gain(best)
    without = held_out.errors(engine.padded(nothing), scores.scales(nothing)[0])
    with_plan = held_out.errors(engine.padded(best), scores.scales(best)[0]) if best != nothing else without
    less = without - with_plan
    helps = gained > 2.0 * jitter and bool(less.mean() > 2.0 * np.std(less) / len(less) ** 0.5)
    if not helps:
        best, with_plan, spare = nothing, without, 1.0
    moved = held_out.moved(engine.padded(best)) if helps else 0.0
    drawn = scores.scales(best)[1:]
    seen = engine.trials.errors(engine.padded(best), drawn)
    return SearchResult(
        plan=engine.plan(best),
        numbers=best,
        helps=helps,
        claim=claim_of(with_plan, held_out.redrawn(engine.padded(best), drawn, with_plan), seen),
        baseline=claim_of(without),
        bound=scores.score(best, scores.total),
        jitter=jitter,
        spare=spare,
        moved=moved,
        moved_by_deletion=moved - held_out.moved(engine.padded(best).prefix_only()) if best.delete_count else 0.0,
        objective=name_of(config.objective),
        sensitive_block=engine.space.sensitive_block,
        parts=parts,
        calibration=judged_with(parts, images, scheme, config),
        trials=scores.table.rows,
        block_flops=scores.block_flops + engine.trials.block_flops - before,
        seconds=time.monotonic() - began,
        compilations=compilations() - compiled_before,
        complete=complete,
    )

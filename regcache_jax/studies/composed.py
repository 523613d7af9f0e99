"""Recipes composed of parts: which are worth trying, found on few pictures, a kind of part at a time.

A method that prepares the encoder and who shares a scale come first, since they decide what the ranges are; then how kernels are
rounded, then how a range is taken. After each, what cannot win is dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import ImageSpec
from regcache_jax.files.workdir import Workdir
from regcache_jax.studies.cells import Cell, Entry, PlanKind
from regcache_jax.studies.choice import allowed, ranked, that_ran
from regcache_jax.studies.cost import MODEL
from regcache_jax.studies.grid import Bench, compare
from regcache_jax.studies.recipes import scheme_of

PREPARING = ("rtn", "smoothquant", "awq", "repq_vit", "rotation")
SHARINGS = ("static", "group", "token", "tensor")
ROUNDINGS = ("", "clipping", "gptq", "erq", "ptq4vit", "bias_correction")
RANGES = ("absmax", "asymmetric", "percentile", "mse")

FEW = 32
"""Pictures that give scales in the passes, and as many that score."""
KEPT = 3
"""Recipes that each pass hands to the next."""
FINALISTS = 4
"""Recipes that are tried on all pictures, beside plain rounding."""
COMPOSED = len(PREPARING) * len(SHARINGS) + KEPT * len(ROUNDINGS) + KEPT * len(RANGES)
"""Recipes that the passes try at most, at some bits."""


def finalists(
    bench: Bench,
    bits: str,
    plan: PlanKind | None,
    workdir: Workdir,
    *,
    static_only: bool = False,
    max_cost: float | None = None,
) -> list[str]:
    """The recipes that may win at some bits, with a plan in place or without, by the errors on `FEW` of the bench's pictures."""
    price = MODEL if max_cost is None else bench.price  # a compiler is asked where a limit hangs on it
    few = dataclasses.replace(
        bench, calibration=bench.calibration[:FEW], scoring=bench.scoring[:FEW], draws=1, price=price
    )

    def best(recipes: Sequence[str], count: int) -> list[str]:
        cells = [Cell(bits, recipe, plan) for recipe in dict.fromkeys(recipes) if _goes(recipe, bits, static_only)]
        entries = compare(few, cells, workdir, "few")
        return [entry.cell.recipe for entry in ranked(_ran(entries, max_cost))[:count]]

    sharings = [each for each in SHARINGS if each != "group" or _has_groups(bench.encoder.spec.image)]
    kept = best([f"{method}@{sharing}" for method in PREPARING for sharing in sharings], KEPT)
    kept = best([*kept, *(_rounded(recipe, rounding) for recipe in kept for rounding in ROUNDINGS)], KEPT)
    return best([*kept, *(f"{recipe}@{taken}" for recipe in kept for taken in RANGES[1:])], FINALISTS)


def _ran(entries: Sequence[Entry], max_cost: float | None) -> list[Entry]:
    ran = that_ran(entries)
    return allowed(ran, max_cost) if ran else []


def _has_groups(spec: ImageSpec) -> bool:
    """Whether there are tokens beside the patches, whose scales could be their own."""
    return spec.num_protected > 0


def _rounded(recipe: str, rounding: str) -> str:
    """A recipe with a method that rounds or corrects behind the one that prepares."""
    method, _, words = recipe.partition("@")
    parts = [part for part in (method, rounding) if part not in ("", "rtn")]
    return f"{'+'.join(parts) or 'rtn'}@{words}"


def _goes(recipe: str, bits: str, static_only: bool) -> bool:
    """Whether the parts go together."""
    try:
        scheme = scheme_of(recipe, bits)
    except UserError:
        return False
    return scheme.calibrated or not static_only

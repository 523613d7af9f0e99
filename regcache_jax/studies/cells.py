"""One cell of a grid: bits x recipe x plan. How its encoder is made, what came of trying it, and how a work folder keeps that.

`regcache run`, `compare`, `quantize --auto` and the benchmarks try such cells; what is measured of their encoders is each one's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.workdir import Json, Workdir
from regcache_jax.quantization.quantize import quantize
from regcache_jax.studies.recipes import scheme_of

Images = Float[np.ndarray, "_ Y X 3"]
PlanKind = Literal["registers", "prefix-only", "delete-only"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is tried: a number of bits (`w8a8`, or `float`), a recipe (`recipes.options_of`), and what is in place of the plan that
    was searched for those bits: all of it (`registers`), one of its halves, or nothing."""

    bits: str
    recipe: str = "rtn"
    plan: PlanKind | None = None

    @property
    def name(self) -> str:
        """`w8a8-smoothquant-registers` and the like."""
        return "-".join(part for part in (self.bits, self.recipe, self.plan) if part is not None)

    def scheme(self, weights: str = "channel") -> Scheme | None:
        """How it is quantised; None for float. Raises UserError for unknown bits and recipes."""
        return None if self.bits == "float" else scheme_of(self.recipe, self.bits, weights)

    def encoder(
        self, encoder: Encoder, images: Callable[[], Images], plan: RegisterPlan | None, weights: str = "channel"
    ) -> Encoder:
        """The encoder that it speaks of, made of a float one. `images` gives the calibration pictures, where any are needed;
        `plan` is in place where the cell has one. Raises UserError for a recipe that does not go with the plan."""
        encoder, scheme = encoder.with_plan(plan if self.plan is not None else None), self.scheme(weights)
        if scheme is None:
            return encoder
        return quantize(encoder, images() if scheme.needs_images else None, scheme)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A cell and what came of it; `fault` says why there are no numbers, `note` why one is missing.

    `error`: without labels, against the float features, the mean over pictures and draws of the calibration pictures; `errors`:
    a list a draw, of a number a picture. `described`: what a result row says of the encoder."""

    cell: Cell
    error: float | None = None
    cost: float | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    fault: str | None = None
    note: str | None = None
    described: Json = dataclasses.field(default_factory=dict)
    errors: list[list[float]] = dataclasses.field(default_factory=list)

    @property
    def worst(self) -> float | None:
        """The error of the picture that comes off worst."""
        return max((max(drawn) for drawn in self.errors), default=None)

    @property
    def jitter(self) -> float | None:
        """How much the mean error moves with the pictures and with the draws (one standard error)."""
        return standard_error(np.asarray(self.errors)) if self.errors else None

    @property
    def name(self) -> str:
        """Its cell's."""
        return self.cell.name


def standard_error(errors: Float[np.ndarray, "draws n"]) -> float:
    """Of the mean over pictures and draws: what pictures and draws differ by, added."""
    draws, pictures = errors.shape
    of_pictures = np.var(errors.mean(axis=0), ddof=1) / pictures if pictures > 1 else 0.0
    of_draws = np.var(errors.mean(axis=1), ddof=1) / draws if draws > 1 else 0.0
    return float(np.sqrt(of_pictures + of_draws))


def kept(
    workdir: Workdir,
    stage: str,
    made_from: object,
    attempt: Callable[[], Entry],
    files: Sequence[str] = (),
    **how: bool,
) -> Entry:
    """What came of a cell, from the work folder where it was made from the same things (`Workdir.stage` says how)."""
    found = workdir.stage(stage, made_from, lambda: dataclasses.asdict(attempt()), files, **how).result
    return Entry(**{**found, "cell": Cell(**found["cell"])})


def cells_of(recipes: Sequence[str], bits: Sequence[str], plans: Mapping[str, RegisterPlan]) -> list[Cell]:
    """Every recipe at every number of bits, without registers and (where there is a plan for the bits) with them.

    Raises UserError for unknown recipes and bits."""
    cells = [
        Cell(each, recipe, plan)
        for each in bits
        for recipe in recipes
        for plan in ((None, "registers") if each in plans else (None,))
    ]
    for cell in cells:
        cell.scheme()
    return cells

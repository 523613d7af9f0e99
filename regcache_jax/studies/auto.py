"""`auto`: the best recipe under a limit on cost, chosen without labels, with the table of what was tried.

The reference set is parted: one half gives scales and register plans, the other scores. Every entry is made `DRAWS` times, from parts
of the first half; `choice.choose` takes one, and that is made again from the whole half.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.workdir import Workdir
from regcache_jax.studies.cells import Cell, Entry, PlanKind, cells_of
from regcache_jax.studies.choice import allowed, choose, ranked, that_ran
from regcache_jax.studies.composed import COMPOSED, FEW, FINALISTS, finalists
from regcache_jax.studies.cost import MODEL, Price
from regcache_jax.studies.grid import Bench, compare
from regcache_jax.studies.pace import Pace
from regcache_jax.studies.plans import find_plans
from regcache_jax.studies.recipes import AutoConfig, scheme_of

DRAWS = 2
"""Parts of the calibration pictures, each of which makes every entry."""


@dataclasses.dataclass(frozen=True)
class AutoResult:
    """The quantised encoder, the entry that it is, and all entries, the best first (those the limit excludes last)."""

    encoder: Encoder
    chosen: Entry
    entries: list[Entry]


def halves(
    images: Float[np.ndarray, "n Y X 3"], seed: int
) -> tuple[Float[np.ndarray, "m Y X 3"], Float[np.ndarray, "k Y X 3"]]:
    """Two parts of a set, drawn by `seed`. Raises UserError for fewer than four images."""
    if len(images) < 4:
        raise UserError(f"auto needs at least 4 reference images, got {len(images)}; 256 or more are sensible")
    order = np.random.default_rng(seed).permutation(len(images))
    half = len(images) // 2
    return np.asarray(images)[np.sort(order[:half])], np.asarray(images)[np.sort(order[half:])]


def auto(
    encoder: Encoder,
    images: Float[np.ndarray, "n Y X 3"],
    workdir: Workdir,
    config: AutoConfig | None = None,
    price: Price = MODEL,
) -> AutoResult:
    """Tries the recipes of `config`, or composes some, and returns the best encoder, by the error of the search's objective.

    The work folder keeps the table and the searches' trials, by which a killed run goes on where it stopped and ends with the same
    choice. `price` gives costs: the model of `cost`, or a TPU compiler's cycles (`regcache_jax.tpu.ask.encoder_cycles`)."""
    config = config or AutoConfig()
    calibration, scoring = halves(images, config.seed)
    plans = find_plans(encoder, calibration, config.bits, workdir, config.search) if config.registers else {}
    bench = Bench(encoder, calibration, scoring, plans, price=price, objective=config.search.objective, draws=DRAWS)
    entries = compare(bench, _cells(bench, config, workdir), workdir)
    chosen = choose(entries, config.max_cost)
    within = allowed(that_ran(entries), config.max_cost)
    rest = ranked([entry for entry in within if entry is not chosen])
    beyond = sorted(
        (entry for entry in entries if entry not in within), key=lambda entry: (entry.error is None, entry.error)
    )
    return AutoResult(bench.encoder_of(chosen.cell), chosen, [chosen, *rest, *beyond])


def seconds_of(encoder: Encoder, num_images: int, config: AutoConfig) -> float:
    """About how long `auto` takes on so many images."""
    pace, half, kinds = Pace(encoder), num_images // 2, len(config.bits) * (1 + config.registers)
    seconds = len(config.bits) * config.registers * pace.search(half, config.search)
    if config.recipes is not None:
        return seconds + DRAWS * pace.cells(len(config.recipes) * kinds, half // DRAWS, half)
    tried = pace.cells(COMPOSED * kinds, min(FEW, half), min(FEW, half))
    return seconds + tried + DRAWS * pace.cells((1 + FINALISTS) * kinds, half // DRAWS, half)


def _cells(bench: Bench, config: AutoConfig, workdir: Workdir) -> list[Cell]:
    """The recipes that are asked for, else plain rounding and those that come through the passes on few pictures."""
    if config.recipes is not None:
        recipes = [
            recipe
            for recipe in config.recipes
            if not config.static_only or all(scheme_of(recipe, bits).calibrated for bits in config.bits)
        ]
        return cells_of(recipes, config.bits, bench.plans)
    cells: list[Cell] = []
    for bits in config.bits:
        plan_kinds: tuple[PlanKind | None, ...] = (None, "registers") if bits in bench.plans else (None,)
        for plan in plan_kinds:
            found = finalists(bench, bits, plan, workdir, static_only=config.static_only, max_cost=config.max_cost)
            cells += [Cell(bits, recipe, plan) for recipe in ("rtn", *found)]
    return cells

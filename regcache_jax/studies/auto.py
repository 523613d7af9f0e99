"""`auto`: the best recipe under a limit on cost, chosen without labels, with the table of what was tried.

The reference set is parted: one half gives scales and register plans, the other scores. The choice is the entry with the least
error that the limit allows (of equals the cheapest), so on the scoring half it is the best of its table by construction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.workdir import Workdir
from regcache_jax.studies.cells import Entry, cells_of
from regcache_jax.studies.cost import MODEL, Price
from regcache_jax.studies.grid import Bench, compare
from regcache_jax.studies.plans import find_plans
from regcache_jax.studies.recipes import AutoConfig, scheme_of


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


def choose(entries: Sequence[Entry], max_cost: float | None) -> Entry:
    """The entry of least error whose cost is at most `max_cost` times the cheapest one's. Raises UserError if none ran."""
    ran = [entry for entry in entries if entry.error is not None]
    if not ran:
        raise UserError(f"nothing could be tried: {'; '.join(sorted({entry.fault or '' for entry in entries}))}")
    return min(_allowed(ran, max_cost), key=lambda entry: (entry.error, entry.cost or math.inf, entry.name))


def _allowed(ran: Sequence[Entry], max_cost: float | None) -> list[Entry]:
    """Those within the limit. Raises UserError where there is a limit and no cost is known."""
    costs = [entry.cost for entry in ran if entry.cost is not None]
    if max_cost is None:
        return list(ran)
    if not costs:
        raise UserError(f"no recipe's cost is known, so none can be held to a limit: {ran[0].note}")
    return [entry for entry in ran if entry.cost is not None and entry.cost <= max_cost * min(costs)]


def auto(
    encoder: Encoder,
    images: Float[np.ndarray, "n Y X 3"],
    workdir: Workdir,
    config: AutoConfig | None = None,
    price: Price = MODEL,
) -> AutoResult:
    """Tries the recipes of `config` on reference images and returns the best encoder, by the error of the search's objective. The work
    folder keeps the table and the searches' trials, by which a killed run goes on where it stopped and ends with the same choice.
    `price` gives costs: the model of `cost`, or a TPU compiler's cycles (`regcache_jax.tpu.ask.encoder_cycles`)."""
    config = config or AutoConfig()
    calibration, scoring = halves(images, config.seed)
    plans = find_plans(encoder, calibration, config.bits, workdir, config.search) if config.registers else {}
    recipes = [
        recipe
        for recipe in config.recipes
        if not config.static_only or all(scheme_of(recipe, bits).calibrated for bits in config.bits)
    ]
    bench = Bench(encoder, calibration, scoring, plans, price=price, objective=config.search.objective)
    entries = compare(bench, cells_of(recipes, config.bits, plans), workdir)
    chosen = choose(entries, config.max_cost)
    allowed = set(map(id, _allowed([entry for entry in entries if entry.error is not None], config.max_cost)))
    ranked = sorted(entries, key=lambda entry: (id(entry) not in allowed, entry.error is None, entry.error, entry.name))
    return AutoResult(bench.encoder_of(chosen.cell), chosen, ranked)

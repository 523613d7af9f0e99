"""Which of several entries is taken: by the mean error, unless pictures or draws cannot tell, and never at the price of the tail."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from regcache_jax.core.errors import UserError
from regcache_jax.studies.cells import Entry, standard_error

NEAR = 2.0
"""An entry is near the best where its mean error is at most so many times the least."""
TAIL = 2.0
"""A worst picture is bad where it errs so many times as much as the worst picture of an entry that is near the best."""
JITTERS = 2.0
"""Entries differ where their means do by so many standard errors of the difference, picture by picture and draw by draw."""


def that_ran(entries: Sequence[Entry]) -> list[Entry]:
    """Those of which there is an error."""
    return [entry for entry in entries if entry.error is not None]


def allowed(ran: Sequence[Entry], max_cost: float | None) -> list[Entry]:
    """Those that cost at most `max_cost` times the cheapest. Raises UserError where there is a limit and no cost is known."""
    costs = [entry.cost for entry in ran if entry.cost is not None]
    if max_cost is None:
        return list(ran)
    if not costs:
        raise UserError(f"no recipe's cost is known, so none can be held to a limit: {ran[0].note}")
    return [entry for entry in ran if entry.cost is not None and entry.cost <= max_cost * min(costs)]


def tied(entry: Entry, leader: Entry) -> bool:
    """Whether an entry's mean error is not told from the leader's."""
    if not entry.errors or not leader.errors:
        return entry.error == leader.error
    less = np.asarray(entry.errors) - np.asarray(leader.errors)
    return bool(less.mean() <= JITTERS * standard_error(less))


def choose(entries: Sequence[Entry], max_cost: float | None = None) -> Entry:
    """The entry to take, of those that cost at most `max_cost` times the cheapest: of those near the least mean error none with a bad
    worst picture; of what then ties with the best the cheapest (costs that differ by less than a hundredth are equal), then the
    one with the best worst picture. Raises UserError if none ran."""
    ran = that_ran(entries)
    if not ran:
        raise UserError(f"nothing could be tried: {'; '.join(sorted({entry.fault or '' for entry in entries}))}")
    candidates = allowed(ran, max_cost)
    least = min(_error(entry) for entry in candidates)
    near = [entry for entry in candidates if _error(entry) <= NEAR * least]
    calm = [entry for entry in near if _worst(entry) <= TAIL * min(map(_worst, near))]
    leader = min(calm, key=_error)
    cheapest = min((entry.cost for entry in candidates if entry.cost is not None), default=1.0)

    def rank(entry: Entry) -> tuple[float, float, str]:
        return math.inf if entry.cost is None else round(entry.cost / cheapest, 2), _worst(entry), entry.name

    return min((entry for entry in calm if tied(entry, leader)), key=rank)


def equals(entries: Sequence[Entry]) -> list[Entry]:
    """Those that tie with the one of least error."""
    ran = that_ran(entries)
    leader = min(ran, key=_error, default=None)
    return [] if leader is None else [entry for entry in ran if tied(entry, leader)]


def ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Entries in the order in which they would be chosen, if those before them were not there."""
    left, order = list(entries), []
    while left:
        order.append(choose(left))
        left.remove(order[-1])
    return order


def _error(entry: Entry) -> float:
    assert entry.error is not None
    return entry.error


def _worst(entry: Entry) -> float:
    """The worst picture's error; the mean where nobody noted pictures."""
    return _error(entry) if entry.worst is None else entry.worst

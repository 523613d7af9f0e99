"""The batch at which a program costs least: cost over batch has several valleys, so one walk downhill is not enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable

STRIDE = 3
"""Of the batches in order, every third is tried first; then the neighbours of each that is lower than what was tried beside it."""


def sweep(cost: Callable[[int], float], batches: Iterable[int]) -> dict[int, float]:
    """Cost by batch, for a coarse set of the batches (the same whatever the costs) and then around every valley that it shows,
    down to its floor. A valley narrower than `STRIDE` steps that lies between two coarse batches may be missed.

    Infinite costs stand for batches that cannot be."""
    order = sorted(set(batches))
    tried: dict[int, float] = {}
    wanted = [*order[::STRIDE], order[-1]]
    while wanted:
        tried |= {batch: cost(batch) for batch in dict.fromkeys(wanted)}
        wanted = [batch for floor in _floors(tried) for batch in _beside(floor, order) if batch not in tried]
    return tried


def cheapest(tried: dict[int, float]) -> int | None:
    """The batch of least cost, the smaller of equals; None where no batch can be."""
    best = min(sorted(tried), key=lambda batch: tried[batch])
    return best if tried[best] < float("inf") else None


def _floors(tried: dict[int, float]) -> list[int]:
    """What costs no more than those tried beside it."""
    order = sorted(tried)
    return [batch for batch in order if all(tried[batch] <= tried[other] for other in _beside(batch, order))]


def _beside(batch: int, order: list[int]) -> list[int]:
    place = order.index(batch)
    return [order[index] for index in (place - 1, place + 1) if 0 <= index < len(order)]

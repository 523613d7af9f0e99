"""Figures as a person reads them: shares, intervals, differences, bytes."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def share(row: Json) -> str:
    """Top-1 of a row."""
    return f"{100 * row['metrics']['acc1']:.1f} %"


def within(changes: Json, number: int) -> str:
    """The interval of a row's top-1."""
    low, high = changes["intervals"][number]["acc1"]
    return f"({100 * low:.1f} to {100 * high:.1f})"


def points(difference: Json) -> str:
    """A difference of top-1 with its interval."""
    low, high = difference["interval"]
    return f"{100 * difference['acc1']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def size(number: float) -> str:
    """Bytes."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
